// configs/embedded_schema.h
// run_config.proto as a serialized FileDescriptorSet with its comments; written at build time by
// embed_descriptor.cmake.
#ifndef TRIREME_CONFIGS_EMBEDDED_SCHEMA_H_
#define TRIREME_CONFIGS_EMBEDDED_SCHEMA_H_

#include <cstddef>

namespace trireme {

extern const unsigned char kEmbeddedSchema[];
extern const size_t kEmbeddedSchemaSize;

}  // namespace trireme

#endif  // TRIREME_CONFIGS_EMBEDDED_SCHEMA_H_
