// trainer/main.h
// The program. A project outside the tree links trireme and calls this with families and backends of its own.
#ifndef TRIREME_TRAINER_MAIN_H_
#define TRIREME_TRAINER_MAIN_H_

#include "models/engine/extensions.h"

namespace trireme {

// Runs the command line; returns the exit code to return from main(). The only place that ends a process because of an
// error: the ranks of a job may no longer meet in main().
int Main(int argc, char** argv, const Extensions& extensions);

}  // namespace trireme

#endif  // TRIREME_TRAINER_MAIN_H_
