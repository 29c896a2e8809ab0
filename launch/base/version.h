// launch/base/version.h
#ifndef TRIREME_LAUNCH_BASE_VERSION_H_
#define TRIREME_LAUNCH_BASE_VERSION_H_

namespace trireme {

// "0.1.0 (004cdd1a2b3c)": the version of CMakeLists.txt and the commit it was built from, with "+changes" when tracked
// files differed from it;
// "(built without git)" where the sources came as an archive. The build writes the definition
// (cmake/TriremeVersion.cmake).
extern const char* const kVersion;

}  // namespace trireme

#endif  // TRIREME_LAUNCH_BASE_VERSION_H_
