// The first byte chooses: a recipe, or the manifest of a corpus.
#include "configs/run_config.pb.h"
#include "configs/text_parser.h"
#include "data/corpus/manifest.h"
#include "tests/fuzz/fuzz_files.h"
#include "tests/fuzz/fuzz_target.h"

namespace trireme {

bool FuzzOne(const std::string& input) {
  if (input.empty()) return false;
  if (input[0] == 'm') {
    static MemoryFile file;
    file.Write(absl::string_view(input).substr(1));
    const auto manifest = ReadManifest(file.path());
    if (manifest.ok()) (void)ContentDigest(*manifest);
    return manifest.ok();
  }
  RunConfig config;
  std::vector<std::string> problems;
  ParseConfigText({"recipe", input.substr(1), "", 0}, &config, &problems);
  return problems.empty();
}

std::vector<std::string> FuzzSeeds() {
  return {
      "r# A recipe.\nmodel { family: \"llama\" num_hidden_layers: 2 rope_scaling { rope_type: LLAMA3 factor: 8 } }\n"
      "data { source { path: \"a\" \"b\" } source < path: 'c' > sequence_length: 256 document_mask: true }\n"
      "optimizer { adamw { learning_rate: 6e-4 } } resume: AUTO parallel { tensor: -2, shard: PARAMETERS; }",
      "rmodel { famly: \"llama\" hidden_size: \"x\" hidden_size: 3 }\noptimizer { sgd { } adamw { learning_rate: } }\n"
      "train_for { steps: 99999999999999999999 } launch { device: GPUS } checkpoint { every_steps: 1 ",
      "mversion: 1\nvocab_size: 300\nsplit { name: \"train\" num_tokens: 3 num_documents: 1 shard { name: \"a\" "
      "num_tokens: 3 num_documents: 1 } }\n",
  };
}

}  // namespace trireme
