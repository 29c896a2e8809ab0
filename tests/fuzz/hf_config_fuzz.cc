#include "models/formats/hf/hf_config.h"
#include "tests/fuzz/fuzz_target.h"

namespace trireme {

bool FuzzOne(const std::string& input) {
  const auto config = ParseHfConfig(input, "config.json", BuiltInHfModelTypes());
  if (!config.ok()) return false;
  ModelConfig model;
  std::vector<std::string> problems;
  MergeHfConfig(config->model, "config.json", &model, &problems);
  TRIREME_CHECK(problems.empty(), problems.front());
  return true;
}

std::vector<std::string> FuzzSeeds() {
  return {
      R"({"model_type":"llama","architectures":["LlamaForCausalLM"],"hidden_size":64,"num_attention_heads":4,)"
      R"("num_hidden_layers":2,"intermediate_size":128,"vocab_size":256,"num_key_value_heads":2,"hidden_act":"silu",)"
      R"("rope_theta":10000.0,"rope_scaling":{"rope_type":"llama3","factor":8.0,"low_freq_factor":1.0,)"
      R"("high_freq_factor":4.0,"original_max_position_embeddings":8192},"eos_token_id":[1,2],"bos_token_id":0,)"
      R"("torch_dtype":"bfloat16","attention_bias":false,"tie_word_embeddings":true,"use_cache":true})",
      R"({"model_type":"mistral","hidden_size":64,"num_attention_heads":4,"num_hidden_layers":2,"head_dim":16,)"
      R"("intermediate_size":128,"vocab_size":256,"sliding_window":null,"rope_parameters":{"rope_theta":1e6,)"
      R"("rope_type":"default"},"dtype":"float32","rms_norm_eps":1e-05,"initializer_range":0.02,"pad_token_id":null,)"
      R"("max_position_embeddings":4096.0,"quantization_config":null,"_x":[[[]]],"\ud83d\ude00":""})",
  };
}

}  // namespace trireme
