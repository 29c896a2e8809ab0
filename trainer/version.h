// trainer/version.h
#ifndef TRIREME_TRAINER_VERSION_H_
#define TRIREME_TRAINER_VERSION_H_

namespace trireme {

inline constexpr char kVersion[] = "0.1.0";

}  // namespace trireme

#endif  // TRIREME_TRAINER_VERSION_H_
