#include <absl/strings/match.h>
#include <gtest/gtest.h>

#include "data/jinja/template.h"

namespace trireme::jinja {
namespace {

using Json = nlohmann::ordered_json;

const Json& Variables() {
  static const Json* const variables = new Json(Json::parse(R"({
    "s": " Ab c\n", "u": "Z\u00fcrich \ud834\udd1e", "n": 7, "f": 2.5, "t": true, "l": [3, 1, 2], "q": "it's <b>",
    "d": {"b": 1, "a": {"x": [1, 2.0, null], "items": 5}}, "m": [{"role": "user", "n": 1}, {"role": "x"}]})"));
  return *variables;
}

absl::StatusOr<Rendering> Render(const std::string& source, const Environment& environment = {}) {
  ASSIGN_OR_RETURN(const Template parsed, Template::Parse(source, "T", environment.limits));
  return parsed.Render(Variables(), environment);
}

std::string Text(const std::string& source) {
  const auto rendered = Render(source);
  return rendered.ok() ? rendered->text : "error: " + std::string(rendered.status().message());
}

using Pairs = std::vector<std::pair<std::string, std::string>>;

// Expectations are Python's; tests/oracle/chat_oracle.py compares many more with it.
TEST(Jinja, ExpressionsAreThoseOfPython) {
  for (const auto& [expression, expected] :
       Pairs{{"-7 // 2, -7 % 3, 7 / 2, 2 ** 3 ** 2, 7.5 // -2", "(-4, 2, 3.5, 64, -4.0)"},
             {"1 < 2 < 3, 1 == 1.0, 'b' in d, 4 not in l, 'a' < 'b'", "(True, True, True, True, True)"},
             {"x or 'z', t and n, not l, none is none", "('z', 7, False, True)"},
             {"s ~ n ~ none ~ x ~ l", " Ab c\n7None[3, 1, 2]"},
             {"d", "{'b': 1, 'a': {'x': [1, 2.0, None], 'items': 5}}"},
             {"d.a['items'], d.zz is defined, d.items() | length", "(5, False, 2)"},
             {"['it\\'s', \"q\\\"\", '\\n\\x00\\u200b', u]",
              "[\"it's\", 'q\"', '\\n\\x00\\u200b', 'Z\u00fcrich \U0001D11E']"},
             {"[1e16, 1e15, 0.0001, 0.00001, 1e400]", "[1e+16, 1000000000000000.0, 0.0001, 1e-05, inf]"},
             {"u[1], u[-1], u[::-1], u | length, l[1:], l[::-1]",
              "('\u00fc', '\U0001D11E', '\U0001D11E hcir\u00fcZ', 8, [1, 2], [2, 1, 3])"},
             {"s.strip().split(' '), 'a,b,c'.rsplit(',', 1), ' a  b '.split(none, 1)",
              "(['Ab', 'c'], ['a,b', 'c'], ['a', 'b '])"},
             {"s | trim | upper, 'a-b (c)' | title, l | join('-')", "('AB C', 'A-B (C)', '3-1-2')"},
             {"d | tojson", R"({"b": 1, "a": {"x": [1, 2.0, null], "items": 5}})"},
             {"{'a': [], 'b': [1]} | tojson(indent=2)", "{\n  \"a\": [],\n  \"b\": [\n    1\n  ]\n}"},
             {"m | selectattr('role', 'equalto', 'user') | map(attribute='n') | list", "[1]"},
             {"l | sort(reverse=true), d | dictsort | first | first, l | max", "([3, 2, 1], 'a', 3)"},
             {"x | default('z'), '' | default('z', true), '12.7' | int", "('z', 'z', 12)"},
             {"'{} {a}'.format(1, a=2), '%s-%d' % ('x', 3)", "('1 2', 'x-3')"},
             {"(q | safe) + '<'", "it's <b>&lt;"},
             {"'a' if not t", ""},
             {"namespace(a=1).a, range(5, 0, -2) | list, dict(d, z=1).z", "(1, [5, 3, 1], 1)"}}) {
    EXPECT_EQ(Text("{{ " + expression + " }}"), expected) << expression;
  }
}

TEST(Jinja, StatementsAndWhiteSpace) {
  for (const auto& [source, expected] : Pairs{
           {"{% for x in l %}{{ loop.index }}{{ loop.last }} {% else %}E{% endfor %}", "1False 2False 3True "},
           {"{% for x in l if x > 9 %}{% else %}E{% endfor %}{% for x in l %}{% break %}{% else %}E{% endfor %}", "EE"},
           {"{% for x in l %}{% if x == 1 %}{% continue %}{% endif %}{{ x }}{% endfor %}", "32"},
           {"{% set a = 1 %}{% for x in l %}{{ a }}{% set a = x %}{{ a }}{% endfor %}{{ a }}", "1311121"},
           // Before anything runs Jinja decides that n is the root's own variable, which has no value yet in the loop.
           {"{% for x in [1] %}[{{ n }}]{% endfor %}{% set n = 1 %}{{ n }}", "[]1"},
           {"{% for x in l %}{% for y in [1] %}{{ n }}{% endfor %}{% set n = x %}{% endfor %}{{ n }}", "7777"},
           {"{% set ns = namespace(a=0) %}{% for x in l %}{% set ns.a = ns.a + x %}{% endfor %}{{ ns.a }}", "6"},
           {"{% macro f(a, b=a) %}{{ a }}{{ b }}{{ varargs }}{{ kwargs }}{% endmacro %}{{ f(1) }}{{ f(1, 2, 3, z=4) }}",
            "11(){}12(3,){'z': 4}"},
           {"{% macro f(x) %}[{{ caller(x) }}]{% endmacro %}{% call(y) f(3) %}{{ y }}{% endcall %}", "[3]"},
           {"{% set a | upper %}x{{ n }}{% endset %}{{ a }}{% filter replace('a', 'b') %}xa{% endfilter %}", "X7xb"},
           {"  {% if t %}\n  x\n  {% endif %}\n y\n", "  x\n y"},
           {"{% if t -%}\n  x\n{%- endif %}\n\ny\n{{ n -}}  \n z", "x\ny\n7z"},
           {"a{# c -#}  b{% raw %}{{ x }}{% endraw %}", "ab{{ x }}"}}) {
    EXPECT_EQ(Text(source), expected) << source;
  }
}

TEST(Jinja, GenerationBlocksArePlaces) {
  const auto rendered = Render("a{% generation %}b{{ n }}{% endgeneration %}c{% generation %}{% endgeneration %}");
  ASSERT_TRUE(rendered.ok()) << rendered.status();
  EXPECT_EQ(rendered->text, "ab7c");
  EXPECT_EQ(rendered->generations, (std::vector<std::pair<size_t, size_t>>{{1, 3}, {4, 4}}));
  EXPECT_FALSE(rendered->generation_captured);
  EXPECT_TRUE(Render("{% set a %}{% generation %}b{% endgeneration %}{% endset %}{{ a }}")->generation_captured);
}

TEST(Jinja, ErrorsNameTheLine) {
  for (const auto& [source, expected] :
       Pairs{{"\n{{ raise_exception('no ' ~ n) }}", "T:2: the template raises: no 7"},
             {"{{ x.y }}", "T:1: 'x' is undefined"},
             {"{{ d.zz.y }}", "T:1: 'dict object' has no attribute 'zz'"},
             {"a\nb {{ 'a' + 1 }}", "T:2: unsupported operand type(s) for +: 'str' and 'int'"},
             {"{{ l.append(1) }}", "T:1: access to attribute 'append' of 'list' object is unsafe."},
             {"\n\n{% if t %}", "T:3: Unexpected end of template: elif is missing"},
             {"{% foo %}", "T:1: Encountered unknown tag 'foo'"},
             {"{{ n | nofilter }}", "T:1: No filter named 'nofilter'."},
             {"{% if t %}{{ n | nofilter }}{% endif %}", "T:1: No filter named 'nofilter' found."},
             {"{% break %}", "T:1: 'break' outside loop"},
             {"{{ 1 + }}", "T:1: expected an expression, got the end of the print statement"}}) {
    EXPECT_EQ(Text(source), "error: " + expected) << source;
  }
}

TEST(Jinja, RefusesByNameWhatItDoesNotRender) {
  for (const auto& [source, construct] : Pairs{{"{% include 'x' %}", "the statement {% include %}"},
                                               {"{% block a %}{% endblock %}", "the statement {% block %}"},
                                               {"{% for x in l recursive %}{% endfor %}", "a recursive {% for %}"},
                                               {"{{ s | wordwrap }}", "the filter wordwrap"},
                                               {"{{ u | upper }}", "upper of letters beyond ASCII"},
                                               {"{{ 2 ** 63 }}", "an integer beyond 64 bits"},
                                               {"{{ namespace() }}", "printing a Namespace"},
                                               {"{{ s.__class__ }}", "the attribute __class__"},
                                               {"{{ lipsum() }}", "the function lipsum"}}) {
    EXPECT_EQ(Text(source), "error: T:1: " + construct + " is not supported") << source;
  }
}

TEST(Jinja, BoundsAreErrors) {
  Environment environment;
  environment.limits.template_bytes = 1000;
  environment.limits.steps = 10000;
  environment.limits.bytes = 100000;
  environment.limits.output_bytes = 1000;
  const auto message = [&](const std::string& source) {
    const auto rendered = Render(source, environment);
    return rendered.ok() ? "rendered" : std::string(rendered.status().message());
  };
  EXPECT_TRUE(absl::StrContains(message(std::string(1001, ' ')), "more than the 1000 allowed"));
  EXPECT_TRUE(absl::StrContains(message("{{ " + std::string(200, '(') + "1" + std::string(200, ')') + " }}"),
                                "nested too deep"));
  EXPECT_TRUE(absl::StrContains(message("{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}"),
                                "more than 10000 steps"));
  EXPECT_TRUE(absl::StrContains(message("{{ 'x' * 1001 }}"), "more than 1000 bytes of text"));
  EXPECT_TRUE(absl::StrContains(message("{{ ('x' * 9999 * 9999 * 9999 * 9999) | length }}"), "bytes are made"));
  EXPECT_TRUE(absl::StrContains(message("{% set n = namespace(x=[1]) %}{% for i in range(99) %}"
                                        "{% set n.x = n.x + n.x %}{% endfor %}"),
                                "bytes are made"));
  EXPECT_TRUE(absl::StrContains(message("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}"), "levels of evaluation"));
  EXPECT_TRUE(absl::StrContains(message("{% set n = namespace(x=1) %}{% for i in range(999) %}"
                                        "{% set n.x = [n.x] %}{% endfor %}"),
                                "nested more than 200 deep"));
}

TEST(Jinja, NamespacesMayHoldEachOther) {
  EXPECT_EQ(Text("{% set a = namespace() %}{% set a.b = namespace(a=a) %}{% set a.c = [a] %}{{ a.b.a.c | length }}"),
            "1");
}

TEST(Jinja, TheClockIsGiven) {
  Environment environment;
  environment.now = 1785600000;
  EXPECT_EQ(Render("{{ strftime_now('%d %b %Y %-H%%') }}", environment)->text, "01 Aug 2026 16%");
}

}  // namespace
}  // namespace trireme::jinja
