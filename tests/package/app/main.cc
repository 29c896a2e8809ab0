// Trireme with one more family and one more attention backend. Both copy a built-in one, under another name.
#include "trainer/main.h"

trireme::Extensions MakeExtensions() {
  trireme::Extensions extensions;
  trireme::ModelFamily family = {"outrigger", trireme::LlamaFamily().specify};
  family.hf_types.push_back({.model_type = "outrigger",
                             .architecture = "OutriggerForCausalLM",
                             .family = "outrigger",
                             .max_position_embeddings = 2048});
  extensions.families.push_back(family);
  trireme::AttentionBackend attention = trireme::MathAttention();
  attention.name = "outrigger_math";
  extensions.attention_backends.push_back(attention);
  return extensions;
}

int main(int argc, char** argv) { return trireme::Main(argc, argv, MakeExtensions()); }
