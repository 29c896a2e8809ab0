// models/spec/weight_table.h
// How the checkpoints of a model family store the decoder's parameters: under which names, several in one tensor, with
// which order of rows, transposed. One table serves reading and writing.
#ifndef TRIREME_MODELS_SPEC_WEIGHT_TABLE_H_
#define TRIREME_MODELS_SPEC_WEIGHT_TABLE_H_

#include <cstdint>
#include <string>
#include <vector>

#include "models/spec/decoder_spec.h"

namespace trireme {

// One kind of parameter of a family, as data.
struct WeightRule {
  const char* name;  // ours, a literal; * stands for the layer's number
  // Theirs, likewise. # stands for the number of a head or expert, each of which is a tensor of its own. Several names
  // with | between them: the rows of each head or expert are equal parts that are tensors of their own, or, without #,
  // tensors that hold this part of all heads or experts.
  const char* stored;
  bool transposed = false;    // a matrix is stored as [columns, rows]; by_heads: each head's apart
  int part = 0, parts = 1;    // the stored rows are those of `parts` of our parameters, this being the part-th
  bool per_group = false;     // ... of each group of heads in turn (a key head and its queries), instead of each
                              // parameter in turn
  bool rotary_order = false;  // the rows of a head are in another order where rotation is partial (RotaryOrder)
  bool by_heads = false;      // rows are stored as [heads, rows of a head, ...]
  bool scalar = false;        // a vector of one number is stored without dimensions
  bool in_turn = false;       // with |: the rows of a head or expert belong to its parts in turn, not one part's before
                              // the next one's
  // With |: how many rows of a head are the first of two parts, whose matrices are stored transposed as by_heads says;
  // the others are the second. Null: parts are equal.
  int64_t (*turned_rows)(const DecoderSpec& spec) = nullptr;
  bool (*applies)(const DecoderSpec& spec) = nullptr;  // null: to every model of the family
};

// The rules of parameters whose rows follow one another in one stored tensor.
std::vector<WeightRule> Fused(const char* stored, const std::vector<const char*>& names);
// Of gate and up in mlp.gate_up_proj.
std::vector<WeightRule> FusedGateUp();

struct WeightNames {
  std::vector<WeightRule> rules;     // what has none is stored under our name, as it is
  std::string optional_prefix = "";  // of stored names, which some files leave out
  // Other layouts that files come in: rules that stand before those above. Written are those above.
  std::vector<std::vector<WeightRule>> also = {};
  // Files may have layers behind the last, for predicting further tokens, which are left out.
  bool further_layers = false;
  // Endings of tensors that old files have though they are no parameters: the rotary frequencies of any.
  std::vector<std::string> ignored = {".rotary_emb.inv_freq"};
};

// Consecutive rows of a parameter that are consecutive in a stored tensor (columns there, if it is transposed: those of
// its first piece, then of its second, ...).
struct RowRun {
  size_t parameter = 0;  // index into WeightTable::parameters
  int64_t row = 0, stored_row = 0, rows = 0;
  size_t stored = 0;  // index into WeightTable::stored
  int64_t step = 1;   // how far apart the rows are in the parameter: more than 1 by rules with in_turn alone
};

struct WeightTable {
  struct Stored {
    std::string name;
    std::vector<int64_t> shape;  // one or two dimensions
    std::vector<int64_t> label;  // the shape that files give it: other dimensions of the same elements
    bool transposed = false;
    int64_t pieces = 1;        // transposed: so many matrices of as many of our rows, one after another
    bool exact = false;        // float32 whatever number format the model is written in
    std::vector<RowRun> runs;  // by stored_row; they cover the tensor
  };
  struct Parameter {
    std::string name;
    std::vector<int64_t> shape;
    std::vector<RowRun> runs;  // by first row; they cover the parameter
    bool linear = true;        // if a matrix: of no experts and no router, which other software leaves unquantized
  };
  std::vector<Parameter> parameters;  // DecoderParameters()
  std::vector<Stored> stored;         // in the order of their first parameters
  std::string head;                   // what the stored head is called, also where the model is tied
  std::string embedding;              // and the stored embedding
  std::string optional_prefix;
  std::vector<std::string> ignored;
};

WeightTable MakeWeightTable(const DecoderSpec& spec);  // by spec.names
WeightTable MakeWeightTable(const DecoderSpec& spec, const WeightNames& names);

// The module that has a parameter in the family's checkpoints: "model.layers.0.self_attn.qkv_proj" for
// "model.layers.0.self_attn.q_proj.weight" of Phi-3.
std::string StoredModule(const DecoderSpec& spec, const std::string& parameter);

// Where Transformers holds a layer's experts' matrix, and so what adapters call it:
// "model.layers.0.mlp.experts.gate_up_proj".
std::string ExpertModule(const DecoderSpec& spec, const std::string& parameter);

// Where partial rotation turns dimensions i and i + rotary_dim / 2 of a head for i < rotary_dim / 2, we keep its rows
// in an order in which all pairs are i and i + head_dim / 2, those that stand still included: scores of queries with
// keys in the same order are the same, and rotation needs no other code. Our rows of one head, as runs of theirs
// (parameter 0).
std::vector<RowRun> RotaryOrder(int64_t head_dim, int64_t rotary_dim);

}  // namespace trireme

#endif  // TRIREME_MODELS_SPEC_WEIGHT_TABLE_H_
