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
  const char* name;           // ours, a literal; * stands for the layer's number
  const char* stored;         // theirs, likewise
  bool transposed = false;    // a matrix is stored as [columns, rows]
  int part = 0, parts = 1;    // the stored rows are those of `parts` of our parameters, this being the part-th
  bool per_head = false;      // ... of each head in turn, instead of each parameter in turn
  bool rotary_order = false;  // the rows of a head are in another order where rotation is partial (RotaryOrder)
};

struct WeightNames {
  std::vector<WeightRule> rules;     // empty: tensors are stored under our names, as they are
  std::string optional_prefix;       // of stored names, which files may lack; we write it
  std::vector<std::string> ignored;  // what names of stored buffers that hold no weights end with
};

// Names as ours; the rotary frequencies of old files are ignored.
WeightNames LlamaWeightNames();

// Consecutive rows of a parameter that are consecutive in the stored tensor (columns there, if it is transposed).
struct RowRun {
  size_t parameter = 0;  // index into WeightTable::parameters
  int64_t row = 0, stored_row = 0, rows = 0;
};

struct WeightTable {
  struct Stored {
    std::string name;
    std::vector<int64_t> shape;
    bool transposed = false;
    std::vector<RowRun> runs;  // by stored_row; they cover the tensor
  };
  struct Parameter {
    std::string name;
    std::vector<int64_t> shape;
    size_t stored = 0;         // index into WeightTable::stored
    std::vector<RowRun> runs;  // by row; they cover the parameter
  };
  std::vector<Parameter> parameters;  // DecoderParameters()
  std::vector<Stored> stored;         // in the order of their first parameters
  std::string head;                   // what the stored head is called, also where the model is tied
  std::string embedding;              // and the stored embedding
  std::string optional_prefix;
  std::vector<std::string> ignored;
};

// CHECKs that the rules name every parameter.
WeightTable MakeWeightTable(const WeightNames& names, const DecoderSpec& spec);

// Where partial rotation turns dimensions i and i + rotary_dim / 2 of a head for i < rotary_dim / 2, we keep its rows
// in an order in which all pairs are i and i + head_dim / 2, those that stand still included: scores of queries with
// keys in the same order are the same, and rotation needs no other code. Our rows of one head, as runs of theirs
// (parameter 0).
std::vector<RowRun> RotaryOrder(int64_t head_dim, int64_t rotary_dim);

}  // namespace trireme

#endif  // TRIREME_MODELS_SPEC_WEIGHT_TABLE_H_
