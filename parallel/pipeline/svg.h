// parallel/pipeline/svg.h
// A timeline as a picture.
#ifndef TRIREME_PARALLEL_PIPELINE_SVG_H_
#define TRIREME_PARALLEL_PIPELINE_SVG_H_

#include <string>

#include "parallel/pipeline/simulate.h"

namespace trireme {

// One row per rank and, in it, one <rect class="F" data-rank= data-stage= data-microbatch=> per action, of class F, B,
// I or W; x and width are proportional to time. A rank's later stages are darker; labels are microbatches and left out
// where they do not fit. Under the rows an axis in seconds and a legend.
std::string DrawSvg(const Timeline& timeline);

}  // namespace trireme

#endif  // TRIREME_PARALLEL_PIPELINE_SVG_H_
