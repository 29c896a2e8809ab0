# cmake -DINPUT=run_config.desc -DOUTPUT=embedded_schema.cc -P embed_descriptor.cmake: a binary file as a C++ array.
file(READ ${INPUT} bytes HEX)
string(LENGTH "${bytes}" digits)
math(EXPR size "${digits} / 2")
string(REGEX REPLACE "([0-9a-f][0-9a-f])" "0x\\1," bytes "${bytes}")
string(REPEAT "." 100 line)
string(REGEX REPLACE "(${line})" "\\1\n" bytes "${bytes}")
file(WRITE ${OUTPUT} "#include \"configs/embedded_schema.h\"

namespace trireme {

const unsigned char kEmbeddedSchema[] = {
${bytes}
};
const size_t kEmbeddedSchemaSize = ${size};

}  // namespace trireme
")
