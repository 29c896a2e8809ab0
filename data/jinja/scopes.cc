// Long because it follows two files of Jinja, whose order of visits decides what a name means; they are best compared
// whole.
#include "data/jinja/scopes.h"

#include <map>
#include <set>

#include "data/jinja/builtins.h"

namespace trireme::jinja {
namespace {

// A Python function of the compiled template, while it is being compiled.
struct FunctionScope {
  FunctionScope* parent = nullptr;
  int depth = 0;
  std::map<std::string, int> slots;  // by identifier

  int Slot(const std::string& identifier) { return slots.try_emplace(identifier, slots.size()).first->second; }
};

struct Reference {
  std::string identifier;
  FunctionScope* function;
};

// jinja2.idtracking.Symbols: the names of one frame.
class Symbols {
 public:
  Symbols(const Symbols* parent, FunctionScope* function)
      : parent_(parent), level_(parent == nullptr ? 0 : parent->level_ + 1), function_(function) {}

  std::optional<Reference> Find(const std::string& name) const {
    for (const Symbols* symbols = this; symbols != nullptr; symbols = symbols->parent_) {
      if (const auto found = symbols->refs_.find(name); found != symbols->refs_.end())
        return Reference{found->second, symbols->function_};
    }
    return std::nullopt;
  }

  void Store(const std::string& name) {
    stores_.insert(name);
    if (refs_.count(name) > 0) return;
    Define(name, Outer(name, Load::Action::kMissing));
  }
  std::string DeclareParameter(const std::string& name) {
    stores_.insert(name);
    return Define(name, std::nullopt);
  }
  void Read(const std::string& name) {
    if (!Find(name).has_value()) Define(name, Source{Load::Action::kResolve, name, {}});
  }

  void UpdateFromBranches(const std::vector<Symbols>& branches) {
    std::set<std::string> stores;
    for (const Symbols& branch : branches) stores.insert(branch.stores_.begin(), branch.stores_.end());
    for (const std::string& name : stores_) stores.erase(name);
    for (const Symbols& branch : branches) {
      for (const auto& [name, identifier] : branch.refs_) refs_[name] = identifier;
      for (const auto& [identifier, source] : branch.loads_) loads_[identifier] = source;
      stores_.insert(branch.stores_.begin(), branch.stores_.end());
    }
    for (const std::string& name : stores) loads_[Find(name)->identifier] = Outer(name, Load::Action::kResolve);
  }

  // The frame's loads, for code in `function_`.
  Frame MakeFrame() const {
    Frame frame;
    for (const auto& [identifier, source] : loads_) {
      frame.locals.push_back(function_->Slot(identifier));
      if (!source.has_value()) continue;
      Load load{source->action, frame.locals.back(), source->name, {}};
      if (load.action == Load::Action::kAlias) load.variable = VariableOf(source->outer);
      frame.loads.push_back(std::move(load));
    }
    return frame;
  }

  Variable VariableOf(const Reference& reference) const {
    return {function_->depth - reference.function->depth, reference.function->Slot(reference.identifier)};
  }

  FunctionScope* function() const { return function_; }

 private:
  // How a name gets its value when the frame is entered; nullopt: it is a parameter.
  struct Source {
    Load::Action action;
    std::string name;
    Reference outer;
  };

  std::optional<Source> Outer(const std::string& name, Load::Action otherwise) const {
    const std::optional<Reference> outer = parent_ == nullptr ? std::nullopt : parent_->Find(name);
    if (outer.has_value()) return Source{Load::Action::kAlias, "", *outer};
    return Source{otherwise, name, {}};
  }
  std::string Define(const std::string& name, std::optional<Source> source) {
    std::string identifier = absl::StrCat(level_, " ", name);
    refs_[name] = identifier;
    loads_[identifier] = std::move(source);
    return identifier;
  }

  const Symbols* parent_;
  int level_;
  FunctionScope* function_;
  std::map<std::string, std::string> refs_;             // name to identifier
  std::map<std::string, std::optional<Source>> loads_;  // by identifier
  std::set<std::string> stores_;
};

// Calls visit(child) for the expressions that `expression` consists of.
template <typename Visit>
void ForEachPart(const Expression& expression, const Visit& visit) {
  for (const ExpressionPtr& part : expression.parts) {
    if (part != nullptr) visit(*part);
  }
  const Arguments& arguments = expression.arguments;
  for (const ExpressionPtr& argument : arguments.positional) visit(*argument);
  for (const auto& [name, argument] : arguments.named) visit(*argument);
  if (arguments.star != nullptr) visit(*arguments.star);
  if (arguments.star_star != nullptr) visit(*arguments.star_star);
}

// jinja2.idtracking.FrameSymbolVisitor: what one frame reads and assigns; stops at inner frames.
class FrameVisitor {
 public:
  explicit FrameVisitor(Symbols* symbols) : symbols_(symbols) {}

  void Read(const Expression& expression) {
    if (expression.kind == ExpressionKind::kName) symbols_->Read(expression.name);
    ForEachPart(expression, [this](const Expression& part) { Read(part); });
  }
  void ReadIf(const ExpressionPtr& expression) {
    if (expression != nullptr) Read(*expression);
  }

  void Assign(const Expression& target) {
    if (target.kind == ExpressionKind::kName) return symbols_->Store(target.name);
    if (target.kind == ExpressionKind::kAttribute) return symbols_->Read(target.parts[0]->name);
    for (const ExpressionPtr& part : target.parts) Assign(*part);
  }
  void Declare(const Expression& target) {
    if (target.kind == ExpressionKind::kName) {
      symbols_->DeclareParameter(target.name);
      return;
    }
    for (const ExpressionPtr& part : target.parts) Declare(*part);
  }

  void Visit(const Body& body) {
    for (const auto& statement : body) Visit(*statement);
  }

 private:
  void Visit(const Statement& statement) {
    switch (statement.kind) {
      case StatementKind::kOutput:
      case StatementKind::kWith:
        for (const ExpressionPtr& expression : statement.expressions) Read(*expression);
        break;
      case StatementKind::kIf:
        VisitIf(statement);
        break;
      case StatementKind::kFor:
      case StatementKind::kCall:
      case StatementKind::kFilter:
        Read(*statement.value);
        break;
      case StatementKind::kSet:
        Read(*statement.value);
        Assign(*statement.target);
        break;
      case StatementKind::kSetBlock:
        Assign(*statement.target);
        break;
      case StatementKind::kMacro:
        symbols_->Store(statement.name);
        break;
      case StatementKind::kText:
      case StatementKind::kGeneration:
      case StatementKind::kBreak:
      case StatementKind::kContinue:
        break;
    }
  }

  template <typename Act>
  Symbols InBranch(const Act& act) {
    Symbols branch = *symbols_;
    Symbols* outer = symbols_;
    symbols_ = &branch;
    act();
    symbols_ = outer;
    return branch;
  }

  void VisitIf(const Statement& statement) {
    Read(*statement.branches[0].condition);
    std::vector<Symbols> branches;
    branches.push_back(InBranch([&] { Visit(statement.branches[0].body); }));
    branches.push_back(InBranch([&] {
      for (size_t i = 1; i < statement.branches.size(); ++i) {
        Read(*statement.branches[i].condition);
        Symbols body = InBranch([&] { Visit(statement.branches[i].body); });
        symbols_->UpdateFromBranches({std::move(body), *symbols_, *symbols_});
      }
    }));
    branches.push_back(InBranch([&] { Visit(statement.else_body); }));
    symbols_->UpdateFromBranches(branches);
  }

  Symbols* symbols_;
};

// jinja2.compiler.find_undeclared: which of `names` are read before they are assigned, inner frames included.
class UndeclaredVisitor {
 public:
  explicit UndeclaredVisitor(std::set<std::string> names) : names_(std::move(names)) {}

  std::set<std::string> Find(const Body& body) {
    Visit(body);
    return undeclared_;
  }

 private:
  void Read(const ExpressionPtr& expression) {
    if (expression != nullptr) Read(*expression);
  }
  void Read(const Expression& expression) {
    if (expression.kind == ExpressionKind::kName && names_.count(expression.name) > 0)
      undeclared_.insert(expression.name);
    ForEachPart(expression, [this](const Expression& part) { Read(part); });
  }
  void Assign(const ExpressionPtr& target) {
    if (target == nullptr || target->kind == ExpressionKind::kAttribute) return;
    if (target->kind == ExpressionKind::kName) names_.erase(target->name);
    for (const ExpressionPtr& part : target->parts) Assign(part);
  }
  void Visit(const Body& body) {
    for (const auto& statement : body) Visit(*statement);
  }
  void Visit(const Statement& statement) {
    const bool value_first = statement.kind == StatementKind::kCall;
    if (value_first) Read(statement.value);
    Assign(statement.target);
    for (const ExpressionPtr& target : statement.targets) Assign(target);
    for (const ExpressionPtr& value : statement.defaults) Read(value);
    for (const ExpressionPtr& expression : statement.expressions) Read(expression);
    if (!value_first && statement.kind != StatementKind::kFilter) Read(statement.value);
    for (const Branch& branch : statement.branches) {
      Read(branch.condition);
      Visit(branch.body);
    }
    Visit(statement.body);
    Visit(statement.else_body);
    Read(statement.test);
    if (statement.kind == StatementKind::kFilter) Read(statement.value);
  }

  std::set<std::string> names_, undeclared_;
};

// jinja2.compiler.CodeGenerator, as far as names go.
class Resolver {
 public:
  explicit Resolver(Program* program) : program_(*program) {}

  absl::Status Run() {
    FunctionScope root;
    Symbols symbols(nullptr, &root);
    FrameVisitor(&symbols).Visit(program_.body);
    program_.frame = symbols.MakeFrame();
    RETURN_IF_ERROR(Resolve(program_.body, {&symbols, false, false}));
    program_.num_slots = static_cast<int>(root.slots.size());
    return absl::OkStatus();
  }

 private:
  struct Place {
    const Symbols* symbols;
    bool soft;     // what is here may not run: an unknown filter is no error yet
    bool in_loop;  // of this function
  };

  template <typename... Args>
  absl::Status Fail(int line, const Args&... args) const {
    return Error(ExitCode::kData, program_.name, ":", line, ": ", args...);
  }

  absl::Status Resolve(Expression* expression, Place place) {
    if (expression->kind == ExpressionKind::kName) {
      if (expression->name == "self") return Fail(expression->line, "the name self is not supported");
      const std::optional<Reference> reference = place.symbols->Find(expression->name);
      if (!reference.has_value())
        return Fail(expression->line, "the name ", expression->name, " in a filter of {% set %} is not supported");
      expression->variable = place.symbols->VariableOf(*reference);
    }
    const bool is_filter = expression->kind == ExpressionKind::kFilter;
    if (!place.soft && (is_filter ? !IsJinjaFilter(expression->name)
                                  : expression->kind == ExpressionKind::kTest && !IsJinjaTest(expression->name)))
      return Fail(expression->line, "No ", is_filter ? "filter" : "test", " named '", expression->name, "'.");
    if (expression->kind == ExpressionKind::kConditional) place.soft = true;
    absl::Status status;
    ForEachPart(*expression, [&](const Expression& part) {
      if (status.ok()) status = Resolve(const_cast<Expression*>(&part), place);
    });
    return status;
  }
  absl::Status Resolve(const ExpressionPtr& expression, Place place) {
    return expression == nullptr ? absl::OkStatus() : Resolve(expression.get(), place);
  }

  absl::Status ResolveTarget(Expression* target, Place place) {
    if (target->kind == ExpressionKind::kTuple) {
      for (const ExpressionPtr& part : target->parts) RETURN_IF_ERROR(ResolveTarget(part.get(), place));
      return absl::OkStatus();
    }
    const std::string& name = target->kind == ExpressionKind::kAttribute ? target->parts[0]->name : target->name;
    target->variable = place.symbols->VariableOf(*place.symbols->Find(name));
    return absl::OkStatus();
  }

  absl::Status Resolve(Body& body, Place place) {
    for (const auto& statement : body) RETURN_IF_ERROR(Resolve(statement.get(), place));
    return absl::OkStatus();
  }

  absl::Status Resolve(Statement* statement, Place place) {
    switch (statement->kind) {
      case StatementKind::kText:
        return absl::OkStatus();
      case StatementKind::kOutput:
        for (const ExpressionPtr& expression : statement->expressions) RETURN_IF_ERROR(Resolve(expression, place));
        return absl::OkStatus();
      case StatementKind::kIf: {
        place.soft = true;
        for (Branch& branch : statement->branches) {
          RETURN_IF_ERROR(Resolve(branch.condition, place));
          RETURN_IF_ERROR(Resolve(branch.body, place));
        }
        return Resolve(statement->else_body, place);
      }
      case StatementKind::kFor:
        return ResolveFor(statement, place);
      case StatementKind::kSet:
        RETURN_IF_ERROR(Resolve(statement->value, place));
        return ResolveTarget(statement->target.get(), place);
      case StatementKind::kSetBlock:
      case StatementKind::kFilter: {
        Symbols inner(place.symbols, place.symbols->function());
        FrameVisitor(&inner).Visit(statement->body);
        if (statement->kind == StatementKind::kFilter) FrameVisitor(&inner).Read(*statement->value);
        statement->frame = inner.MakeFrame();
        const Place inside = {&inner, false, place.in_loop};
        RETURN_IF_ERROR(Resolve(statement->body, inside));
        RETURN_IF_ERROR(Resolve(statement->value, inside));
        return statement->target == nullptr ? absl::OkStatus() : ResolveTarget(statement->target.get(), place);
      }
      case StatementKind::kMacro:
        RETURN_IF_ERROR(ResolveMacro(statement, place));
        statement->macro = place.symbols->VariableOf(*place.symbols->Find(statement->name));
        return absl::OkStatus();
      case StatementKind::kCall:
      case StatementKind::kGeneration:
        RETURN_IF_ERROR(ResolveMacro(statement, place));
        return Resolve(statement->value, place);
      case StatementKind::kWith: {
        Symbols inner(place.symbols, place.symbols->function());
        FrameVisitor visitor(&inner);
        for (const ExpressionPtr& target : statement->targets) visitor.Declare(*target);
        visitor.Visit(statement->body);
        statement->frame = inner.MakeFrame();
        const Place inside = {&inner, false, place.in_loop};
        for (const ExpressionPtr& target : statement->targets) RETURN_IF_ERROR(ResolveTarget(target.get(), inside));
        for (const ExpressionPtr& value : statement->expressions) RETURN_IF_ERROR(Resolve(value, place));
        return Resolve(statement->body, inside);
      }
      case StatementKind::kBreak:
      case StatementKind::kContinue:
        if (place.in_loop) return absl::OkStatus();
        return Fail(statement->line, statement->kind == StatementKind::kBreak ? "'break'" : "'continue'",
                    " outside loop");
    }
    return absl::OkStatus();
  }

  absl::Status ResolveFor(Statement* statement, Place place) {
    FunctionScope* function = place.symbols->function();
    Symbols loop(place.symbols, function), otherwise(place.symbols, function);
    statement->extended_loop = !UndeclaredVisitor({"loop"}).Find(statement->body).empty();
    if (statement->extended_loop) statement->loop_slot = function->Slot(loop.DeclareParameter("loop"));
    FrameVisitor visitor(&loop);
    visitor.Declare(*statement->target);
    visitor.Visit(statement->body);
    if (AssignsLoop(*statement)) {
      return Fail(statement->line, "Can't assign to special loop variable in for-loop target");
    }
    FrameVisitor(&otherwise).Visit(statement->else_body);
    if (statement->test != nullptr) {
      FunctionScope test_function;
      test_function.parent = function;
      test_function.depth = function->depth + 1;
      Symbols test(place.symbols, &test_function);
      FrameVisitor test_visitor(&test);
      test_visitor.Declare(*statement->target);
      test_visitor.Read(*statement->test);
      statement->test_target = CopyTarget(*statement->target);
      const Place inside = {&test, false, false};
      RETURN_IF_ERROR(ResolveTarget(statement->test_target.get(), inside));
      RETURN_IF_ERROR(Resolve(statement->test, inside));
      statement->test_frame = test.MakeFrame();
      statement->function.num_slots = static_cast<int>(test_function.slots.size());
    }
    RETURN_IF_ERROR(Resolve(statement->value, place));
    statement->frame = loop.MakeFrame();
    statement->else_frame = otherwise.MakeFrame();
    const Place inside = {&loop, false, true};
    RETURN_IF_ERROR(ResolveTarget(statement->target.get(), inside));
    RETURN_IF_ERROR(Resolve(statement->body, inside));
    return Resolve(statement->else_body, {&otherwise, false, place.in_loop});
  }

  // jinja2.compiler.CodeGenerator.macro_body.
  absl::Status ResolveMacro(Statement* statement, Place place) {
    FunctionScope scope;
    scope.parent = place.symbols->function();
    scope.depth = scope.parent->depth + 1;
    Symbols symbols(place.symbols, &scope);
    const auto analyze = [&] {
      FrameVisitor visitor(&symbols);
      for (const ExpressionPtr& parameter : statement->targets) visitor.Declare(*parameter);
      for (const ExpressionPtr& value : statement->defaults) visitor.Read(*value);
      visitor.Visit(statement->body);
    };
    analyze();
    Function& function = statement->function;
    std::set<std::string> parameters;
    const size_t required = statement->targets.size() - statement->defaults.size();
    for (size_t i = 0; i < statement->targets.size(); ++i) {
      const std::string& name = statement->targets[i]->name;
      parameters.insert(name);
      function.parameters.push_back(scope.Slot(symbols.Find(name)->identifier));
      if (name == "caller") function.explicit_caller = true;
      if (name == "caller" && i < required)
        return Fail(statement->line, "the special \"caller\" argument must be omitted or be given a default");
    }
    const std::set<std::string> special = UndeclaredVisitor({"caller", "kwargs", "varargs"}).Find(statement->body);
    const auto declare = [&](const std::string& name, int* slot) {
      if (special.count(name) > 0 && parameters.count(name) == 0) *slot = scope.Slot(symbols.DeclareParameter(name));
    };
    declare("caller", &function.caller);
    declare("kwargs", &function.kwargs);
    declare("varargs", &function.varargs);
    analyze();
    statement->frame = symbols.MakeFrame();
    const Place inside = {&symbols, false, false};
    for (const ExpressionPtr& value : statement->defaults) RETURN_IF_ERROR(Resolve(value, inside));
    RETURN_IF_ERROR(Resolve(statement->body, inside));
    function.num_slots = static_cast<int>(scope.slots.size());
    return absl::OkStatus();
  }

  static ExpressionPtr CopyTarget(const Expression& target) {
    auto copy = std::make_unique<Expression>();
    copy->kind = target.kind;
    copy->line = target.line;
    copy->name = target.name;
    for (const ExpressionPtr& part : target.parts) copy->parts.push_back(CopyTarget(*part));
    return copy;
  }

  // Whether a statement in a loop, or the loop, assigns to the name `loop`.
  static bool AssignsLoop(const Expression& target) {
    if (target.kind == ExpressionKind::kName) return target.name == "loop";
    if (target.kind == ExpressionKind::kAttribute) return false;
    for (const ExpressionPtr& part : target.parts) {
      if (AssignsLoop(*part)) return true;
    }
    return false;
  }
  static bool AssignsLoop(const Body& body) {
    for (const auto& statement : body) {
      if (AssignsLoop(*statement)) return true;
    }
    return false;
  }
  static bool AssignsLoop(const Statement& statement) {
    if (statement.target != nullptr && AssignsLoop(*statement.target)) return true;
    for (const Branch& branch : statement.branches) {
      if (AssignsLoop(branch.body)) return true;
    }
    return AssignsLoop(statement.body) || AssignsLoop(statement.else_body);
  }

  Program& program_;
};

}  // namespace

absl::Status ResolveNames(Program* program) { return Resolver(program).Run(); }

}  // namespace trireme::jinja
