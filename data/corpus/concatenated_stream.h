// data/corpus/concatenated_stream.h
// Several token streams, one after another, as one.
#ifndef TRIREME_DATA_CORPUS_CONCATENATED_STREAM_H_
#define TRIREME_DATA_CORPUS_CONCATENATED_STREAM_H_

#include <memory>
#include <string>
#include <vector>

#include "data/corpus/corpus.h"

namespace trireme {

// Every part begins with a document. `description` is for messages.
std::shared_ptr<const TokenStream> Concatenate(std::vector<std::shared_ptr<const TokenStream>> parts,
                                               std::string description);

}  // namespace trireme

#endif  // TRIREME_DATA_CORPUS_CONCATENATED_STREAM_H_
