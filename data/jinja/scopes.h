// data/jinja/scopes.h
// Which variable a name means: Jinja decides that before a template runs.
#ifndef TRIREME_DATA_JINJA_SCOPES_H_
#define TRIREME_DATA_JINJA_SCOPES_H_

#include "data/jinja/syntax/ast.h"
#include "launch/base/status.h"

namespace trireme::jinja {

// Gives every name of `program` its variable and every frame its loads, as jinja2/idtracking.py and compiler.py do:
// a variable that is assigned anywhere in a frame belongs to that frame, and begins with the outer one's value only if
// the frame itself reads it or assigns it in a branch. Errors (kData) are those of Jinja's compiler: break outside a
// loop, an unknown filter or test that is used unconditionally, an assignment to `loop`.
absl::Status ResolveNames(Program* program);

}  // namespace trireme::jinja

#endif  // TRIREME_DATA_JINJA_SCOPES_H_
