// Statements, macros and variables. Long because one rendering is one class: its statements share its buffers and
// scopes.
#include "data/jinja/evaluator.h"

#include "data/unicode/unicode.h"

namespace trireme::jinja {
namespace {

constexpr int kMaxValueDepth = 200;

class ListIterator : public IteratorObject {
 public:
  explicit ListIterator(Value list) : list_(std::move(list)) { depth = list_.depth() + 1; }
  absl::StatusOr<bool> Next(Evaluator*, Value* value) override {
    if (at_ >= list_.items().size()) return false;
    *value = list_.items()[at_++];
    return true;
  }

 private:
  Value list_;
  size_t at_ = 0;
};

class StringIterator : public IteratorObject {
 public:
  explicit StringIterator(Value text) : text_(std::move(text)) { depth = 1; }
  absl::StatusOr<bool> Next(Evaluator* evaluator, Value* value) override {
    const std::string& text = text_.text();
    if (at_ >= text.size()) return false;
    const char* next;
    DecodeUtf8(text.data() + at_, &next);
    const size_t size = next - (text.data() + at_);
    ASSIGN_OR_RETURN(*value, evaluator->NewString(text.substr(at_, size), text_.markup()));
    at_ += size;
    return true;
  }

 private:
  Value text_;
  size_t at_ = 0;
};

class ViewIterator : public IteratorObject {
 public:
  explicit ViewIterator(Value view) : view_(std::move(view)) { depth = view_.depth() + 1; }
  absl::StatusOr<bool> Next(Evaluator*, Value* value) override {
    const auto& view = *view_.As<ViewObject>();
    if (at_ >= view.dict.dict().entries.size()) return false;
    *value = view.At(at_++);
    return true;
  }

 private:
  Value view_;
  size_t at_ = 0;
};

class RangeIterator : public IteratorObject {
 public:
  explicit RangeIterator(Value range) : range_(std::move(range)) { depth = 1; }
  absl::StatusOr<bool> Next(Evaluator*, Value* value) override {
    const auto& range = *range_.As<RangeObject>();
    if (at_ >= range.length) return false;
    *value = Value::Int(range.start + range.step * at_++);
    return true;
  }

 private:
  Value range_;
  int64_t at_ = 0;
};

Value Borrowed(Kind kind, Object* object) {
  return Value(kind, std::shared_ptr<Object>(std::shared_ptr<Object>(), object));
}

}  // namespace

// What `for ... if` lets through: evaluated in a function of its own.
class Evaluator::FilteredIterator : public IteratorObject {
 public:
  FilteredIterator(Value iterable, const Statement& statement, Evaluator* evaluator)
      : iterable_(std::move(iterable)), statement_(statement) {
    depth = iterable_.depth() + 1;
    activation_.parent = evaluator->current_;
    activation_.slots.resize(statement.function.num_slots);
  }

  absl::StatusOr<bool> Next(Evaluator* evaluator, Value* value) override {
    Activation* outer = std::exchange(evaluator->current_, &activation_);
    absl::StatusOr<bool> found = NextHere(evaluator, value);
    evaluator->current_ = outer;
    return found;
  }

 private:
  absl::StatusOr<bool> NextHere(Evaluator* evaluator, Value* value) {
    if (iterator_ == nullptr) {
      ASSIGN_OR_RETURN(iterator_, evaluator->Iterate(iterable_));
      evaluator->Enter(statement_.test_frame);
    }
    while (true) {
      ASSIGN_OR_RETURN(const bool more, iterator_->Next(evaluator, value));
      if (!more) return false;
      RETURN_IF_ERROR(evaluator->Assign(*statement_.test_target, *value));
      ASSIGN_OR_RETURN(const Value passes, evaluator->Evaluate(*statement_.test));
      if (IsTrue(passes)) return true;
    }
  }

  Value iterable_;
  const Statement& statement_;
  std::shared_ptr<IteratorObject> iterator_;
  Activation activation_;
};

Evaluator::Evaluator(const Program& program, const Environment& environment, const Value& variables)
    : program_(program), environment_(environment), variables_(variables) {
  root_.slots.resize(program.num_slots);
}

absl::StatusOr<Rendering> Evaluator::Run() {
  Enter(program_.frame);
  RETURN_IF_ERROR(Execute(program_.body).status());
  return std::move(rendering_);
}

absl::Status Evaluator::Step() {
  const int64_t limit = environment_.limits.steps;
  return ++steps_ <= limit ? absl::OkStatus() : Raise("more than ", limit, " steps of evaluation");
}

absl::Status Evaluator::Charge(int64_t bytes) {
  const int64_t limit = environment_.limits.bytes;
  if (bytes > limit - bytes_) return Raise("more than ", limit, " bytes are made by the template");
  bytes_ += bytes;
  return absl::OkStatus();
}

Result Evaluator::NewString(std::string text, bool markup) {
  RETURN_IF_ERROR(Charge(static_cast<int64_t>(text.size()) + 32));
  return Value::String(std::move(text), markup);
}

Result Evaluator::NewList(std::vector<Value> items, Kind kind) {
  RETURN_IF_ERROR(Charge(static_cast<int64_t>(items.size() + 1) * sizeof(Value)));
  Value list = kind == Kind::kTuple ? Value::Tuple(std::move(items)) : Value::List(std::move(items));
  if (list.depth() > kMaxValueDepth) return Raise("a value is nested more than ", kMaxValueDepth, " deep");
  return list;
}

Result Evaluator::NewDict(std::shared_ptr<DictObject> dict) {
  dict->depth = std::max(dict->depth, 1);
  if (dict->depth > kMaxValueDepth) return Raise("a value is nested more than ", kMaxValueDepth, " deep");
  RETURN_IF_ERROR(Charge(static_cast<int64_t>(dict->entries.size() + 1) * 2 * sizeof(Value)));
  return Value::Dict(std::move(dict));
}

Result Evaluator::NewIterator(std::shared_ptr<IteratorObject> iterator) {
  if (iterator->depth > kMaxValueDepth) return Raise("a value is nested more than ", kMaxValueDepth, " deep");
  RETURN_IF_ERROR(Charge(128));
  return Value(Kind::kIterator, std::move(iterator));
}

NamespaceObject* Evaluator::NewNamespace() {
  auto object = std::make_unique<NamespaceObject>();
  NamespaceObject* borrowed = object.get();
  objects_.push_back(std::move(object));
  return borrowed;
}

absl::StatusOr<std::shared_ptr<IteratorObject>> Evaluator::Iterate(const Value& value) {
  RETURN_IF_ERROR(Step());
  switch (value.kind()) {
    case Kind::kMissing:
    case Kind::kUndefined:
      return std::make_shared<ListIterator>(Value::List({}));
    case Kind::kList:
    case Kind::kTuple:
      return std::make_shared<ListIterator>(value);
    case Kind::kString:
      return std::make_shared<StringIterator>(value);
    case Kind::kDict: {
      auto view = std::make_shared<ViewObject>();
      view->dict = value;
      view->of = ViewOf::kKeys;
      return std::make_shared<ViewIterator>(Value(Kind::kView, std::move(view)));
    }
    case Kind::kView:
      return std::make_shared<ViewIterator>(value);
    case Kind::kRange:
      return std::make_shared<RangeIterator>(value);
    case Kind::kIterator:
      return value.Share<IteratorObject>();
    case Kind::kLoop:
      return Refuse("iterating over `loop`");
    default:
      return Raise("'", TypeName(value), "' object is not iterable");
  }
}

absl::StatusOr<std::vector<Value>> Evaluator::ToVector(const Value& value) {
  if (value.is_sequence()) {
    RETURN_IF_ERROR(Charge(static_cast<int64_t>(value.items().size()) * sizeof(Value)));
    return value.items();
  }
  ASSIGN_OR_RETURN(const std::shared_ptr<IteratorObject> iterator, Iterate(value));
  std::vector<Value> items;
  while (true) {
    Value item;
    ASSIGN_OR_RETURN(const bool more, iterator->Next(this, &item));
    if (!more) return items;
    RETURN_IF_ERROR(Step());
    RETURN_IF_ERROR(Charge(sizeof(Value)));
    items.push_back(std::move(item));
  }
}

void Evaluator::Enter(const Frame& frame) {
  for (const Load& load : frame.loads) {
    Value value;
    if (load.action == Load::Action::kResolve) value = Resolve(load.name);
    if (load.action == Load::Action::kAlias) value = Slot(load.variable);
    current_->slots[load.slot] = std::move(value);
  }
}

void Evaluator::Leave(const Frame& frame) {
  for (const int slot : frame.locals) current_->slots[slot] = Value();
}

Value& Evaluator::Slot(const Variable& variable) {
  Activation* activation = current_;
  for (int hop = 0; hop < variable.hops; ++hop) activation = activation->parent;
  return activation->slots[variable.slot];
}

Value Evaluator::Resolve(const std::string& name) const {
  const Value* value = variables_.dict().Find(name);
  return value != nullptr ? *value : Global(name);
}

absl::Status Evaluator::Write(absl::string_view text) {
  const size_t limit = environment_.limits.output_bytes;
  if (text.size() > limit - std::min(limit, out_->size())) return Raise("more than ", limit, " bytes of text");
  RETURN_IF_ERROR(Charge(static_cast<int64_t>(text.size())));
  out_->append(text.data(), text.size());
  return absl::OkStatus();
}

absl::StatusOr<Evaluator::Flow> Evaluator::Execute(const Body& body) {
  for (const auto& statement : body) {
    ASSIGN_OR_RETURN(const Flow flow, Execute(*statement));
    if (flow != Flow::kNext) return flow;
  }
  return Flow::kNext;
}

absl::StatusOr<Evaluator::Flow> Evaluator::Execute(const Statement& statement) {
  RETURN_IF_ERROR(Step());
  const Level level(this);
  RETURN_IF_ERROR(level.Check());
  line_ = statement.line;
  switch (statement.kind) {
    case StatementKind::kText:
      RETURN_IF_ERROR(Write(statement.text));
      break;
    case StatementKind::kOutput:
      for (const ExpressionPtr& expression : statement.expressions) {
        ASSIGN_OR_RETURN(const Value value, Evaluate(*expression));
        ASSIGN_OR_RETURN(const std::string text, ToText(this, value));
        RETURN_IF_ERROR(Write(text));
      }
      break;
    case StatementKind::kIf:
      return ExecuteIf(statement);
    case StatementKind::kFor:
      return ExecuteFor(statement);
    case StatementKind::kSet: {
      RETURN_IF_ERROR(CheckNamespaces(*statement.target));
      ASSIGN_OR_RETURN(const Value value, Evaluate(*statement.value));
      line_ = statement.line;
      RETURN_IF_ERROR(Assign(*statement.target, value));
      break;
    }
    case StatementKind::kSetBlock:
    case StatementKind::kFilter: {
      Enter(statement.frame);
      std::string text;
      ASSIGN_OR_RETURN(const Flow flow, Captured(statement.body, &text));
      if (flow != Flow::kNext) return flow;
      Value value;
      if (statement.value == nullptr) {
        ASSIGN_OR_RETURN(value, NewString(std::move(text)));
      } else {
        ASSIGN_OR_RETURN(value, EvaluateFilter(*statement.value, &text));
      }
      line_ = statement.line;
      if (statement.target != nullptr) {
        RETURN_IF_ERROR(CheckNamespaces(*statement.target));
        RETURN_IF_ERROR(Assign(*statement.target, value));
      } else {
        ASSIGN_OR_RETURN(const std::string printed, ToText(this, value));
        RETURN_IF_ERROR(Write(printed));
      }
      Leave(statement.frame);
      break;
    }
    case StatementKind::kMacro:
      Slot(statement.macro) = MakeMacro(statement);
      break;
    case StatementKind::kCall: {
      const Value caller = MakeMacro(statement);
      ASSIGN_OR_RETURN(const Value value, EvaluateCall(*statement.value, &caller));
      ASSIGN_OR_RETURN(const std::string text, ToText(this, value));
      RETURN_IF_ERROR(Write(text));
      break;
    }
    case StatementKind::kGeneration:
      RETURN_IF_ERROR(ExecuteGeneration(statement));
      break;
    case StatementKind::kWith: {
      Enter(statement.frame);
      for (size_t i = 0; i < statement.targets.size(); ++i) {
        ASSIGN_OR_RETURN(const Value value, Evaluate(*statement.expressions[i]));
        RETURN_IF_ERROR(Assign(*statement.targets[i], value));
      }
      ASSIGN_OR_RETURN(const Flow flow, Execute(statement.body));
      Leave(statement.frame);
      return flow;
    }
    case StatementKind::kBreak:
      return Flow::kBreak;
    case StatementKind::kContinue:
      return Flow::kContinue;
  }
  return Flow::kNext;
}

absl::StatusOr<Evaluator::Flow> Evaluator::ExecuteIf(const Statement& statement) {
  for (const Branch& branch : statement.branches) {
    ASSIGN_OR_RETURN(const Value condition, Evaluate(*branch.condition));
    if (IsTrue(condition)) return Execute(branch.body);
  }
  return Execute(statement.else_body);
}

absl::StatusOr<Evaluator::Flow> Evaluator::ExecuteFor(const Statement& statement) {
  ASSIGN_OR_RETURN(Value iterable, Evaluate(*statement.value));
  line_ = statement.line;
  RETURN_IF_ERROR(Charge(sizeof(LoopObject)));
  if (statement.test != nullptr) {
    current_->captured = true;
    iterable = Value(Kind::kIterator, std::make_shared<FilteredIterator>(iterable, statement, this));
  }
  auto owned = std::make_unique<LoopObject>();
  LoopObject* loop = owned.get();
  loop->iterable = iterable;
  ASSIGN_OR_RETURN(loop->iterator, Iterate(iterable));
  if (statement.extended_loop) objects_.push_back(std::move(owned));

  bool ended_normally = false;  // no iteration came to its end: the else branch runs
  while (true) {
    line_ = statement.line;
    ASSIGN_OR_RETURN(const bool more, loop->Next(this));
    if (!more) break;
    RETURN_IF_ERROR(Step());
    RETURN_IF_ERROR(Assign(*statement.target, loop->current));
    if (statement.extended_loop) current_->slots[statement.loop_slot] = Borrowed(Kind::kLoop, loop);
    Enter(statement.frame);
    ASSIGN_OR_RETURN(const Flow flow, Execute(statement.body));
    if (flow == Flow::kBreak) break;
    if (flow == Flow::kNext) ended_normally = true;
  }
  Leave(statement.frame);
  if (ended_normally || statement.else_body.empty()) return Flow::kNext;
  Enter(statement.else_frame);
  ASSIGN_OR_RETURN(const Flow flow, Execute(statement.else_body));
  Leave(statement.else_frame);
  return flow;
}

absl::StatusOr<Evaluator::Flow> Evaluator::Captured(const Body& body, std::string* text) {
  std::string* outer = std::exchange(out_, text);
  absl::StatusOr<Flow> flow = Execute(body);
  out_ = outer;
  return flow;
}

absl::Status Evaluator::ExecuteGeneration(const Statement& statement) {
  auto activation = std::make_unique<Activation>();
  activation->parent = current_;
  activation->slots.resize(statement.function.num_slots);
  if (statement.function.caller >= 0)
    activation->slots[statement.function.caller] = Value::Undefined("No caller defined");
  if (statement.function.kwargs >= 0)
    activation->slots[statement.function.kwargs] = Value::Dict(std::make_shared<DictObject>());
  if (statement.function.varargs >= 0) activation->slots[statement.function.varargs] = Value::Tuple({});
  ASSIGN_OR_RETURN(const std::string text, RunMacro(statement, std::move(activation)));
  if (out_ == &rendering_.text) {
    rendering_.generations.emplace_back(out_->size(), out_->size() + text.size());
  } else {
    rendering_.generation_captured = true;
  }
  return Write(text);
}

absl::Status Evaluator::CheckNamespaces(const Expression& target) {
  if (target.kind == ExpressionKind::kAttribute) {
    return Slot(target.variable).is(Kind::kNamespace) ? absl::OkStatus()
                                                      : Raise("cannot assign attribute on non-namespace object");
  }
  for (const ExpressionPtr& part : target.parts) RETURN_IF_ERROR(CheckNamespaces(*part));
  return absl::OkStatus();
}

absl::Status Evaluator::Assign(const Expression& target, const Value& value) {
  if (target.kind == ExpressionKind::kName) {
    Slot(target.variable) = value;
    return absl::OkStatus();
  }
  if (target.kind == ExpressionKind::kAttribute) {
    if (target.name[0] == '_')
      return Raise("Chat templates cannot store underscore-prefixed attributes on a namespace, but got '", target.name,
                   "'");
    const Value holder = Slot(target.variable);
    if (!holder.is(Kind::kNamespace)) return Raise("cannot assign attribute on non-namespace object");
    auto* attributes = holder.As<NamespaceObject>();
    if (Value* present = attributes->Find(target.name)) {
      *present = value;
    } else {
      attributes->attributes.emplace_back(target.name, value);
    }
    return absl::OkStatus();
  }
  ASSIGN_OR_RETURN(const std::vector<Value> values, ToVector(value));
  if (values.size() != target.parts.size()) {
    return Raise(values.size() < target.parts.size() ? "not enough" : "too many", " values to unpack (expected ",
                 target.parts.size(), ")");
  }
  for (size_t i = 0; i < values.size(); ++i) RETURN_IF_ERROR(Assign(*target.parts[i], values[i]));
  return absl::OkStatus();
}

Value Evaluator::MakeMacro(const Statement& statement) {
  current_->captured = true;
  auto function = std::make_shared<FunctionObject>();
  function->type = FunctionObject::Type::kMacro;
  function->name = statement.name;
  function->statement = &statement;
  function->closure = current_;
  return Value(Kind::kFunction, std::move(function));
}

Result Evaluator::Call(const Value& callee, CallArguments arguments) {
  if (callee.is(Kind::kUndefined)) return RaiseUndefined(callee);
  if (callee.is(Kind::kLoop)) return Refuse("calling `loop`");
  if (!callee.is(Kind::kFunction)) return Raise("'", TypeName(callee), "' object is not callable");
  const auto function = callee.Share<FunctionObject>();
  switch (function->type) {
    case FunctionObject::Type::kMethod:
      return CallMethod(this, function->self, function->name, arguments);
    case FunctionObject::Type::kGlobal:
      return CallGlobal(this, function->name, arguments);
    case FunctionObject::Type::kMacro:
      break;
  }
  return CallMacro(*function, std::move(arguments));
}

// jinja2.runtime.Macro.__call__.
Result Evaluator::CallMacro(const FunctionObject& macro, CallArguments arguments) {
  const Function& function = macro.statement->function;
  const auto& parameters = macro.statement->targets;
  const std::string what = macro.name.empty() ? "None" : "'" + macro.name + "'";
  RETURN_IF_ERROR(Charge((function.num_slots + 2) * sizeof(Value)));
  auto activation = std::make_unique<Activation>();
  activation->parent = macro.closure;
  activation->slots.resize(function.num_slots);
  const auto take = [&](const std::string& name) {
    for (auto named = arguments.named.begin(); named != arguments.named.end(); ++named) {
      if (named->first != name) continue;
      Value value = std::move(named->second);
      arguments.named.erase(named);
      return value;
    }
    return Value();
  };
  const size_t num_positional = std::min(arguments.positional.size(), parameters.size());
  bool found_caller = false;
  if (num_positional == parameters.size()) found_caller = function.explicit_caller;
  for (size_t i = 0; i < parameters.size(); ++i) {
    Value& slot = activation->slots[function.parameters[i]];
    if (i < num_positional) {
      slot = arguments.positional[i];
    } else {
      slot = take(parameters[i]->name);
      if (parameters[i]->name == "caller") found_caller = true;
    }
  }
  if (function.caller >= 0 && !found_caller) {
    Value caller = take("caller");
    if (caller.is(Kind::kMissing) || caller.is(Kind::kNone)) caller = Value::Undefined("No caller defined");
    activation->slots[function.caller] = std::move(caller);
  }
  if (function.kwargs >= 0) {
    auto rest = std::make_shared<DictObject>();
    for (auto& [name, value] : arguments.named) rest->Set(name, std::move(value));
    ASSIGN_OR_RETURN(activation->slots[function.kwargs], NewDict(std::move(rest)));
  } else if (!arguments.named.empty()) {
    const std::string& name = arguments.named.front().first;
    if (take("caller").kind() != Kind::kMissing)
      return Raise("macro ", what, " was invoked with two values for the special caller argument");
    return Raise("macro ", what, " takes no keyword argument '", name, "'");
  }
  if (function.varargs >= 0) {
    std::vector<Value> rest(arguments.positional.begin() + num_positional, arguments.positional.end());
    ASSIGN_OR_RETURN(activation->slots[function.varargs], NewList(std::move(rest), Kind::kTuple));
  } else if (arguments.positional.size() > parameters.size()) {
    return Raise("macro ", what, " takes not more than ", parameters.size(), " argument(s)");
  }
  ASSIGN_OR_RETURN(std::string text, RunMacro(*macro.statement, std::move(activation)));
  return NewString(std::move(text));
}

absl::StatusOr<std::string> Evaluator::RunMacro(const Statement& statement, std::unique_ptr<Activation> activation) {
  const Level level(this);
  RETURN_IF_ERROR(level.Check());
  Activation* outer = std::exchange(current_, activation.get());
  std::string text;
  const auto run = [&]() -> absl::Status {
    Enter(statement.frame);
    const size_t required = statement.targets.size() - statement.defaults.size();
    for (size_t i = 0; i < statement.targets.size(); ++i) {
      Value& slot = current_->slots[statement.function.parameters[i]];
      if (!slot.is(Kind::kMissing)) continue;
      if (i < required) {
        slot = Value::Undefined(absl::StrCat("parameter '", statement.targets[i]->name, "' was not provided"));
      } else {
        ASSIGN_OR_RETURN(slot, Evaluate(*statement.defaults[i - required]));
      }
    }
    return Captured(statement.body, &text).status();
  };
  const absl::Status status = run();
  current_ = outer;
  if (activation->captured) activations_.push_back(std::move(activation));
  RETURN_IF_ERROR(status);
  return text;
}

Value* NamespaceObject::Find(const std::string& name) {
  for (auto& [key, value] : attributes) {
    if (key == name) return &value;
  }
  return nullptr;
}

absl::StatusOr<bool> LoopObject::Next(Evaluator* evaluator) {
  Value value = std::exchange(after, Value());
  if (value.is(Kind::kMissing)) {
    ASSIGN_OR_RETURN(const bool more, iterator->Next(evaluator, &value));
    if (!more) return false;
  }
  ++index0;
  before = std::exchange(current, std::move(value));
  return true;
}

absl::Status LoopObject::Peek(Evaluator* evaluator) {
  if (!after.is(Kind::kMissing)) return absl::OkStatus();
  Value value;
  ASSIGN_OR_RETURN(const bool more, iterator->Next(evaluator, &value));
  if (more) after = std::move(value);
  return absl::OkStatus();
}

absl::StatusOr<int64_t> LoopObject::Length(Evaluator* evaluator) {
  if (length >= 0) return length;
  if (HasLength(iterable)) {
    ASSIGN_OR_RETURN(length, trireme::jinja::Length(evaluator, iterable));
    return length;
  }
  ASSIGN_OR_RETURN(std::vector<Value> rest, evaluator->ToVector(Value(Kind::kIterator, iterator)));
  length = static_cast<int64_t>(rest.size()) + index0 + 1 + (after.is(Kind::kMissing) ? 0 : 1);
  ASSIGN_OR_RETURN(const Value list, evaluator->NewList(std::move(rest)));
  ASSIGN_OR_RETURN(iterator, evaluator->Iterate(list));
  return length;
}

Result LoopObject::Attribute(Evaluator* evaluator, const std::string& name) {
  if (name == "index") return Value::Int(index0 + 1);
  if (name == "index0") return Value::Int(index0);
  if (name == "first") return Value::Bool(index0 == 0);
  if (name == "depth") return Value::Int(1);
  if (name == "depth0") return Value::Int(0);
  if (name == "length" || name == "revindex" || name == "revindex0") {
    ASSIGN_OR_RETURN(const int64_t count, Length(evaluator));
    return Value::Int(name == "length" ? count : name == "revindex" ? count - index0 : count - index0 - 1);
  }
  if (name == "previtem") return index0 == 0 ? Value::Undefined("there is no previous item") : before;
  if (name == "last" || name == "nextitem") {
    RETURN_IF_ERROR(Peek(evaluator));
    if (name == "last") return Value::Bool(after.is(Kind::kMissing));
    return after.is(Kind::kMissing) ? Value::Undefined("there is no next item") : after;
  }
  return Value();
}

}  // namespace trireme::jinja
