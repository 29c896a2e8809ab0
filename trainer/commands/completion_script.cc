#include "trainer/commands/completion_script.h"

#include <absl/strings/match.h>
#include <absl/strings/str_cat.h>
#include <absl/strings/str_join.h>
#include <absl/strings/str_replace.h>
#include <absl/strings/str_split.h>
#include <google/protobuf/descriptor.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "configs/run_config.pb.h"

namespace trireme {
namespace {

using google::protobuf::Descriptor;
using google::protobuf::FieldDescriptor;

// What may stand in one place of the command line.
struct Values {
  enum Kind { kNothing, kWords, kFiles, kFields } kind = kNothing;
  std::vector<std::string> words;
};

struct Choice {
  std::vector<std::string> names;  // of an option: -h, --help; of a verb: its name
  std::string description;
  bool takes_value = false;
  Values values;
};

// A verb, with the words before it: "", "train", "tokenizer train".
struct Verb {
  std::string path;
  std::vector<Choice> verbs;
  std::vector<Choice> options;
  Values arguments;
};

// CLI11 writes a set as "{hf,gguf}" behind the type, a map from names as "{text->1,jsonl->2}", numbers as INT, UINT or
// FLOAT, and text as TEXT.
Values ValuesOf(const CLI::Option& option) {
  const std::string type = option.get_type_name();
  const size_t open = type.find('{');
  const size_t close = type.find('}');
  Values values;
  if (open != std::string::npos && close != std::string::npos) {
    values.kind = Values::kWords;
    for (absl::string_view word : absl::StrSplit(absl::string_view(type).substr(open + 1, close - open - 1), ','))
      values.words.emplace_back(word.substr(0, word.find("->")));
  } else if (option.get_name() == "--set" || option.get_name() == "FIELD") {
    values.kind = Values::kFields;
  } else if (absl::StrContains(type, "TEXT")) {
    values.kind = Values::kFiles;
  }
  return values;
}

// Adds the options of `app` to `verb`; those of an option group, which is an app without a name, are the verb's own,
// but for its second --help.
void AddOptions(const CLI::App& app, Verb* verb) {
  for (const CLI::Option* option : app.get_options()) {
    if (app.get_name().empty() && app.get_parent() != nullptr && option == app.get_help_ptr()) continue;
    if (option->get_positional()) {
      verb->arguments = ValuesOf(*option);
      continue;
    }
    Choice choice;
    for (const std::string& name : option->get_snames()) choice.names.push_back(absl::StrCat("-", name));
    for (const std::string& name : option->get_lnames()) choice.names.push_back(absl::StrCat("--", name));
    choice.description = option->get_description();
    choice.takes_value = option->get_items_expected_max() > 0;
    if (choice.takes_value) choice.values = ValuesOf(*option);
    verb->options.push_back(std::move(choice));
  }
  for (const CLI::App* group : app.get_subcommands({}))
    if (group->get_name().empty()) AddOptions(*group, verb);
}

void AddVerbs(const CLI::App& app, const std::string& path, std::vector<Verb>* verbs) {
  Verb verb;
  verb.path = path;
  AddOptions(app, &verb);
  std::vector<const CLI::App*> below = app.get_subcommands({});
  below.erase(
      std::remove_if(below.begin(), below.end(), [](const CLI::App* child) { return child->get_name().empty(); }),
      below.end());
  for (const CLI::App* child : below) {
    Choice choice;
    choice.names = {child->get_name()};
    choice.description = child->get_description();
    verb.verbs.push_back(std::move(choice));
  }
  verbs->push_back(std::move(verb));
  for (const CLI::App* child : below)
    AddVerbs(*child, path.empty() ? child->get_name() : absl::StrCat(path, " ", child->get_name()), verbs);
}

// The paths of all fields: "optimizer", "optimizer.adamw", "optimizer.adamw.learning_rate". No message of a recipe
// holds itself.
void AddFields(const Descriptor& message, const std::string& prefix, std::vector<std::string>* fields) {
  for (int i = 0; i < message.field_count(); ++i) {
    const FieldDescriptor& field = *message.field(i);
    fields->push_back(absl::StrCat(prefix, field.name()));
    if (field.message_type() != nullptr && !field.is_repeated())
      AddFields(*field.message_type(), absl::StrCat(fields->back(), "."), fields);
  }
}

std::string AllFields() {
  std::vector<std::string> fields;
  AddFields(*RunConfig::descriptor(), "", &fields);
  return absl::StrJoin(fields, " ");
}

std::string Words(const std::vector<Choice>& choices) {
  std::vector<std::string> words;
  for (const Choice& choice : choices) words.insert(words.end(), choice.names.begin(), choice.names.end());
  return absl::StrJoin(words, " ");
}

// For both shells: sets `kind` to words, files, fields or nothing, and `words`.
std::string Assign(const Values& values) {
  constexpr const char* kKinds[] = {"nothing", "words", "files", "fields"};
  std::string text = absl::StrCat("kind=", kKinds[values.kind]);
  if (!values.words.empty()) absl::StrAppend(&text, " candidates='", absl::StrJoin(values.words, " "), "'");
  return text;
}

// For both shells: the part of the function that finds `verb`, the words so far that are verbs, among the words after
// the program.
std::string FindVerb(const std::vector<Verb>& verbs) {
  std::vector<std::string> patterns;
  for (const Verb& verb : verbs) {
    if (verb.path.empty()) continue;
    // The verb above this one, which is nothing for the first, and its last word.
    const size_t space = verb.path.rfind(' ');
    patterns.push_back(space == std::string::npos ? absl::StrCat("' ", verb.path, "'")
                                                  : absl::StrCat("'", verb.path, "'"));
  }
  return absl::StrJoin(patterns, " | ");
}

// For both shells: what the value of an option may be.
std::string OptionValues(const std::vector<Verb>& verbs) {
  std::string text;
  for (const Verb& verb : verbs) {
    for (const Choice& option : verb.options) {
      if (!option.takes_value) continue;
      std::vector<std::string> patterns;
      for (const std::string& name : option.names) patterns.push_back(absl::StrCat("'", verb.path, " ", name, "'"));
      absl::StrAppend(&text, "    ", absl::StrJoin(patterns, " | "), ") ", Assign(option.values), " ;;\n");
    }
  }
  return text;
}

// For zsh: 'name:what it is for', the first clause being enough.
std::string Described(const std::vector<Choice>& choices) {
  std::string text;
  for (const Choice& choice : choices) {
    std::string description = choice.description.substr(0, choice.description.find_first_of(";:\n"));
    description = absl::StrReplaceAll(description, {{"'", "'\\''"}, {"\\", "\\\\"}});
    for (const std::string& name : choice.names)
      absl::StrAppend(&text, text.empty() ? "" : " ", "'", name, ":", description, "'");
  }
  return text;
}

}  // namespace

std::string BashCompletion(const CLI::App& app) {
  std::vector<Verb> verbs;
  AddVerbs(app, "", &verbs);
  std::string places;
  for (const Verb& verb : verbs) {
    absl::StrAppend(
        &places, "    '", verb.path, "') options='", Words(verb.options), "' ",
        verb.verbs.empty() ? Assign(verb.arguments) : absl::StrCat("kind=words candidates='", Words(verb.verbs), "'"),
        " ;;\n");
  }
  return absl::StrCat(R"(# bash completion of trireme, from `trireme completion bash`.
_trireme() {
  local word=${COMP_WORDS[COMP_CWORD]} option='' verb='' options='' candidates='' kind='' i
  for ((i = 1; i < COMP_CWORD; i++)); do
    case "$verb ${COMP_WORDS[i]}" in
      )",
                      FindVerb(verbs), R"() verb=${verb:+$verb }${COMP_WORDS[i]} ;;
    esac
  done
  # bash takes --format=gguf as three words.
  option=${COMP_WORDS[COMP_CWORD - 1]}
  if [ "$word" = '=' ]; then word=''; elif [ "$option" = '=' ]; then option=${COMP_WORDS[COMP_CWORD - 2]}; fi
  case "$verb $option" in
)",
                      OptionValues(verbs), R"(  esac
  if [ -z "$kind" ]; then
    case "$verb" in
)",
                      places, R"(    esac
    if [[ "$word" == -* || "$kind" == nothing ]]; then kind=words candidates=$options; fi
  fi
  COMPREPLY=()
  case "$kind" in
    words) mapfile -t COMPREPLY < <(compgen -W "$candidates" -- "$word") ;;
    files)
      compopt -o filenames 2>/dev/null
      mapfile -t COMPREPLY < <(compgen -f -- "$word")
      ;;
    fields)
      compopt -o nospace 2>/dev/null
      mapfile -t COMPREPLY < <(compgen -W ')",
                      AllFields(), R"(' -- "$word")
      ;;
  esac
}
complete -F _trireme trireme
)");
}

std::string ZshCompletion(const CLI::App& app) {
  std::vector<Verb> verbs;
  AddVerbs(app, "", &verbs);
  std::string places;
  for (const Verb& verb : verbs) {
    absl::StrAppend(&places, "    '", verb.path, "')\n      options=(", Described(verb.options), ")\n");
    if (verb.verbs.empty()) {
      absl::StrAppend(&places, "      ", Assign(verb.arguments), "\n      ;;\n");
    } else {
      absl::StrAppend(&places, "      verbs=(", Described(verb.verbs), ")\n      kind=verbs\n      ;;\n");
    }
  }
  return absl::StrCat(R"(#compdef trireme
# zsh completion of trireme, from `trireme completion zsh`.
_trireme() {
  local word=${words[CURRENT]} option=${words[CURRENT-1]} verb='' candidates='' kind='' i
  local -a options verbs
  for ((i = 2; i < CURRENT; i++)); do
    case "$verb ${words[i]}" in
      )",
                      FindVerb(verbs), R"() verb=${verb:+$verb }${words[i]} ;;
    esac
  done
  if [[ "$word" == --*=* ]]; then
    option=${word%%=*}
    compset -P '*='
  fi
  case "$verb $option" in
)",
                      OptionValues(verbs), R"(  esac
  if [[ -z "$kind" ]]; then
    case "$verb" in
)",
                      places, R"(    esac
    if [[ "$word" == -* || "$kind" == nothing ]]; then kind=options; fi
  fi
  case "$kind" in
    verbs) _describe -t commands 'verb' verbs ;;
    options) _describe -o -t options 'option' options ;;
    words) compadd -- ${=candidates} ;;
    files) _files ;;
    fields) compadd -S '' -- )",
                      AllFields(), R"( ;;
  esac
}
if [[ "${zsh_eval_context[-1]}" == loadautofunc ]]; then _trireme "$@"; else compdef _trireme trireme; fi
)");
}

}  // namespace trireme
