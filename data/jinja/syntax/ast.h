// data/jinja/syntax/ast.h
// A template as the parser leaves it and scopes.h completes it: names resolved to variables.
#ifndef TRIREME_DATA_JINJA_SYNTAX_AST_H_
#define TRIREME_DATA_JINJA_SYNTAX_AST_H_

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "data/jinja/syntax/value.h"

namespace trireme::jinja {

struct Expression;
struct Statement;
using ExpressionPtr = std::unique_ptr<Expression>;
using Body = std::vector<std::unique_ptr<Statement>>;

enum class ExpressionKind {
  kConstant,
  kName,       // read, or as a target written
  kAttribute,  // parts[0].name; as a target, of a namespace variable
  kItem,       // parts[0][parts[1]]
  kSlice,      // parts: start, stop, step; null where left out
  kList,
  kTuple,  // also a target
  kDict,   // parts: key, value, key, value, ...
  kCall,
  kFilter,  // parts[0] is null in a filter block: the block's text
  kTest,
  kNot,
  kNegative,
  kPositive,
  kBinary,  // name: + - * / // % **
  kConcat,
  kCompare,  // parts[0] names[0] parts[1] names[1] ...
  kAnd,
  kOr,
  kConditional,  // parts: condition, then, else or null
};

// Where a variable lives: `hops` functions out, `slot` in there.
struct Variable {
  int hops = 0;
  int slot = -1;
};

struct Arguments {
  std::vector<ExpressionPtr> positional;
  std::vector<std::pair<std::string, ExpressionPtr>> named;
  ExpressionPtr star, star_star;  // *args, **kwargs; or null
};

struct Expression {
  ExpressionKind kind;
  int line = 0;
  std::string name;
  std::vector<std::string> names;
  Value constant;
  std::vector<ExpressionPtr> parts;
  Arguments arguments;  // of kCall, kFilter, kTest
  Variable variable;    // of kName, and of kAttribute as a target
};

enum class StatementKind {
  kText,
  kOutput,
  kIf,
  kFor,
  kSet,
  kSetBlock,
  kMacro,
  kCall,
  kGeneration,
  kFilter,
  kWith,
  kBreak,
  kContinue,
};

// What happens to variables when a frame is entered.
struct Load {
  enum class Action { kResolve, kAlias, kMissing } action;
  int slot;
  std::string name;   // kResolve: of the template's variables
  Variable variable;  // kAlias: copied from
};

struct Frame {
  std::vector<Load> loads;
  std::vector<int> locals;  // without a value once the frame is left
};

// A Python function of the compiled template: the root, a macro, a call block, a loop's filter.
struct Function {
  int num_slots = 0;
  std::vector<int> parameters;                 // slots
  int caller = -1, kwargs = -1, varargs = -1;  // slots of the special ones that the body reads
  bool explicit_caller = false;                // `caller` is among the parameters
};

struct Branch {
  ExpressionPtr condition;
  Body body;
};

struct Statement {
  StatementKind kind;
  int line = 0;
  std::string text;                        // kText
  std::vector<ExpressionPtr> expressions;  // kOutput; values of kWith
  std::vector<Branch> branches;            // kIf
  ExpressionPtr target;                    // kFor, kSet, kSetBlock
  ExpressionPtr value;  // kFor: iterated over; kSet; kCall: the call; kFilter, kSetBlock: the filter or null
  ExpressionPtr test;   // kFor: if; or null
  std::vector<ExpressionPtr> targets;   // kWith, kMacro and kCall (parameters)
  std::vector<ExpressionPtr> defaults;  // of the last parameters
  std::string name;                     // kMacro
  Body body, else_body;

  bool extended_loop = false;  // the body reads `loop`
  int loop_slot = -1;
  Frame frame, else_frame;    // of the body, of the else branch
  Function function;          // kMacro, kCall, kGeneration; kFor: of the test
  ExpressionPtr test_target;  // kFor: the target, in the test's function
  Frame test_frame;
  Variable macro;  // kMacro: where it is stored
};

struct Program {
  std::string name;
  Body body;
  Frame frame;
  int num_slots = 0;
  bool has_generation = false;
};

}  // namespace trireme::jinja

#endif  // TRIREME_DATA_JINJA_SYNTAX_AST_H_
