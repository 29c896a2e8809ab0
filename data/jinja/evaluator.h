// data/jinja/evaluator.h
// One rendering of a template.
#ifndef TRIREME_DATA_JINJA_EVALUATOR_H_
#define TRIREME_DATA_JINJA_EVALUATOR_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "data/jinja/builtins.h"
#include "data/jinja/syntax/ast.h"
#include "data/jinja/template.h"

namespace trireme::jinja {

// The variables of one call of a function of the template.
struct Activation {
  Activation* parent = nullptr;  // of the function around it
  std::vector<Value> slots;
  bool captured = false;  // something may outlive the call and read them
};

struct IteratorObject : Object {
  // Gives the next value; false: there is none.
  virtual absl::StatusOr<bool> Next(Evaluator* evaluator, Value* value) = 0;
};

// jinja2.runtime.LoopContext.
struct LoopObject : Object {
  Value iterable;
  std::shared_ptr<IteratorObject> iterator;
  int64_t index0 = -1, length = -1;
  Value before, current, after, last_changed;  // kMissing: none

  absl::StatusOr<bool> Next(Evaluator* evaluator);
  absl::Status Peek(Evaluator* evaluator);  // `after` becomes the next one
  absl::StatusOr<int64_t> Length(Evaluator* evaluator);
  Result Attribute(Evaluator* evaluator, const std::string& name);  // kMissing: none of that name
};

struct NamespaceObject : Object {
  std::vector<std::pair<std::string, Value>> attributes;

  Value* Find(const std::string& name);
};

struct FunctionObject : Object {
  enum class Type { kMacro, kMethod, kGlobal } type;
  std::string name;
  Value self;                            // kMethod
  const Statement* statement = nullptr;  // kMacro
  Activation* closure = nullptr;
};

class Evaluator {
 public:
  Evaluator(const Program& program, const Environment& environment, const Value& variables);

  absl::StatusOr<Rendering> Run();

  // For the builtins.
  // What raises in Python; what Python would do and this program does not.
  template <typename... Args>
  absl::Status Raise(const Args&... args) const {
    return Error(ExitCode::kData, program_.name, ":", line_, ": ", args...);
  }
  template <typename... Args>
  absl::Status Refuse(const Args&... args) const {
    return Raise(args..., " is not supported");
  }
  absl::Status RaiseUndefined(const Value& undefined) const { return Raise(undefined.text()); }

  absl::Status Charge(int64_t bytes);  // counts what is made, before it is made
  Result NewString(std::string text, bool markup = false);
  Result NewList(std::vector<Value> items, Kind kind = Kind::kList);
  Result NewDict(std::shared_ptr<DictObject> dict);
  Result NewIterator(std::shared_ptr<IteratorObject> iterator);
  NamespaceObject* NewNamespace();

  absl::StatusOr<std::shared_ptr<IteratorObject>> Iterate(const Value& value);
  absl::StatusOr<std::vector<Value>> ToVector(const Value& value);
  Result Call(const Value& callee, CallArguments arguments);

  const Environment& environment() const { return environment_; }

 private:
  enum class Flow { kNext, kBreak, kContinue };
  class Level;
  class FilteredIterator;

  absl::Status Step();
  Result Evaluate(const Expression& expression);
  Result EvaluateCall(const Expression& expression, const Value* caller);
  Result EvaluateFilter(const Expression& expression, const std::string* block);
  Result EvaluateCompare(const Expression& expression);
  Result EvaluateItem(const Expression& expression);
  Result EvaluateDict(const Expression& expression);
  absl::StatusOr<CallArguments> EvaluateArguments(const Arguments& arguments);
  absl::StatusOr<std::vector<Value>> EvaluateAll(const std::vector<ExpressionPtr>& expressions);

  absl::StatusOr<Flow> Execute(const Body& body);
  absl::StatusOr<Flow> Execute(const Statement& statement);
  absl::StatusOr<Flow> ExecuteFor(const Statement& statement);
  absl::StatusOr<Flow> ExecuteIf(const Statement& statement);
  absl::StatusOr<Flow> Captured(const Body& body, std::string* text);
  absl::Status ExecuteGeneration(const Statement& statement);
  absl::Status Assign(const Expression& target, const Value& value);
  absl::Status CheckNamespaces(const Expression& target);
  Result CallMacro(const FunctionObject& macro, CallArguments arguments);
  absl::StatusOr<std::string> RunMacro(const Statement& statement, std::unique_ptr<Activation> activation);
  Value MakeMacro(const Statement& statement);

  void Enter(const Frame& frame);
  void Leave(const Frame& frame);
  Value& Slot(const Variable& variable);
  Value Resolve(const std::string& name) const;
  absl::Status Write(absl::string_view text);

  const Program& program_;
  const Environment& environment_;
  const Value& variables_;
  Activation root_;
  Activation* current_ = &root_;
  Rendering rendering_;
  std::string* out_ = &rendering_.text;
  int line_ = 1;
  int depth_ = 0;
  int64_t steps_ = 0, bytes_ = 0;
  std::vector<std::unique_ptr<Object>> objects_;  // namespaces and loops
  std::vector<std::unique_ptr<Activation>> activations_;
};

// Counts the nesting of evaluation.
class Evaluator::Level {
 public:
  explicit Level(Evaluator* evaluator) : evaluator_(evaluator) { ++evaluator_->depth_; }
  ~Level() { --evaluator_->depth_; }
  Level(const Level&) = delete;
  Level& operator=(const Level&) = delete;
  absl::Status Check() const {
    const int limit = evaluator_->environment_.limits.depth;
    return evaluator_->depth_ <= limit ? absl::OkStatus()
                                       : evaluator_->Raise("more than ", limit, " levels of evaluation");
  }

 private:
  Evaluator* evaluator_;
};

}  // namespace trireme::jinja

#endif  // TRIREME_DATA_JINJA_EVALUATOR_H_
