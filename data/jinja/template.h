// data/jinja/template.h
// The Jinja of chat templates, as Transformers configures it.
#ifndef TRIREME_DATA_JINJA_TEMPLATE_H_
#define TRIREME_DATA_JINJA_TEMPLATE_H_

#include <absl/strings/string_view.h>

#include <cstdint>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "launch/base/status.h"

namespace trireme::jinja {

struct Program;

// Bounds for templates that nobody vouches for. Reaching one is an error.
struct Limits {
  size_t template_bytes = size_t{1} << 20;
  int nesting = 60;                    // of statements and expressions in each other
  int depth = 1000;                    // of evaluation, macros that call each other included
  int64_t steps = 20'000'000;          // expressions and statements evaluated, items looked at
  int64_t bytes = int64_t{256} << 20;  // of all strings and lists that are made
  size_t output_bytes = size_t{64} << 20;
};

struct Environment {
  Limits limits;
  std::optional<int64_t> now;  // what strftime_now() reads: seconds since 1970, as UTC; unset: the clock, local time
};

struct Rendering {
  std::string text;
  std::vector<std::pair<size_t, size_t>> generations;  // bytes [begin, end) that {% generation %} blocks wrote
  bool generation_captured = false;  // such a block ran within a macro or {% set %}: where its text went is unknown
};

// Jinja 3.1 in ImmutableSandboxedEnvironment(trim_blocks, lstrip_blocks, loopcontrols, {% generation %}) with the
// globals raise_exception and strftime_now and the filter tojson of Transformers. Renders byte for byte what Python
// does or fails: an error that ends in "is not supported" is a construct that is left out here, all others are raised
// by Python as well. Errors are kData and name NAME:line. Left out: {% block/extends/include/import/autoescape %},
// recursive loops, the filters filesizeformat, forceescape, groupby, pprint, random, striptags, urlencode, urlize,
// wordcount, wordwrap and xmlattr, integers beyond 64 bits, case mappings of letters outside ASCII, objects printed
// with their addresses.
class Template {
 public:
  static absl::StatusOr<Template> Parse(absl::string_view source, const std::string& name, Limits limits = {});
  Template(Template&&);
  Template& operator=(Template&&);
  ~Template();

  // `variables`: an object.
  absl::StatusOr<Rendering> Render(const nlohmann::ordered_json& variables, const Environment& environment = {}) const;

  bool has_generation() const;  // whether {% generation %} stands in it

 private:
  explicit Template(std::unique_ptr<Program> program);

  std::unique_ptr<Program> program_;
};

}  // namespace trireme::jinja

#endif  // TRIREME_DATA_JINJA_TEMPLATE_H_
