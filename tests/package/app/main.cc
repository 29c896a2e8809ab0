// Trireme with one more family and one more attention backend. Both copy a built-in one, under another name.
#include "trainer/main.h"

trireme::Extensions MakeExtensions() {
  trireme::Extensions extensions;
  extensions.families.push_back({"outrigger", trireme::LlamaFamily().specify});
  trireme::AttentionBackend attention = trireme::MathAttention();
  attention.name = "outrigger_math";
  extensions.attention_backends.push_back(attention);
  return extensions;
}

int main(int argc, char** argv) { return trireme::Main(argc, argv, MakeExtensions()); }
