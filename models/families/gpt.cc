#include "models/families/gpt.h"

namespace trireme {

DecoderDraft DraftGpt(const ModelConfig& config, const std::string& activation, std::vector<std::string>* problems) {
  DecoderDraft draft = DraftDecoder(config, problems);
  const AttentionSettings& attention = draft.attention;
  UseLayerNorm(config, /*bias=*/true, &draft, problems);
  draft.feed_forward.gated = false;
  draft.feed_forward.bias = true;
  draft.feed_forward.activation = ActivationOf(config, activation, problems);
  if (attention.kv_heads != attention.heads)
    problems->push_back(absl::StrCat("model.num_key_value_heads: is ", attention.kv_heads, ", but every one of the ",
                                     attention.heads, " heads of this family has keys and values; remove it"));
  if (attention.head_dim * attention.heads != draft.spec.hidden_size)
    problems->push_back(absl::StrCat("model.head_dim: ", attention.head_dim, " x ", attention.heads,
                                     " heads is not hidden_size ", draft.spec.hidden_size, "; remove it"));
  if (config.sliding_window() != 0 || !config.layer_types().empty() || !config.no_rope_layers().empty())
    problems->push_back(
        "model.sliding_window, layer_types, no_rope_layers: this family has no such layers; remove them");
  return draft;
}

}  // namespace trireme
