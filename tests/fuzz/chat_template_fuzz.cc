// Chat templates: the input is one, rendered over a conversation with tools.
#include "data/chat/chat_template.h"
#include "data/jinja/template.h"
#include "tests/fuzz/fuzz_target.h"

namespace trireme {

bool FuzzOne(const std::string& input) {
  static const nlohmann::ordered_json* const variables = new nlohmann::ordered_json(nlohmann::ordered_json::parse(R"({
    "messages": [{"role": "system", "content": " S\n"}, {"role": "user", "content": "caf\u00e9 <b>"},
      {"role": "assistant", "content": null, "tool_calls": [{"function": {"name": "f", "arguments": {"x": [1, 2.5, true]}}}]},
      {"role": "assistant", "content": "<think>t</think>ok"}],
    "tools": [{"type": "function", "function": {"name": "f", "parameters": {"b": {}, "A": [null, -3]}}}],
    "bos_token": "<s>", "n": 7, "text": "a b  c", "add_generation_prompt": true})"));
  jinja::Environment environment;
  environment.limits.steps = 20000;
  environment.limits.bytes = 1 << 20;
  environment.limits.output_bytes = 1 << 18;
  environment.now = 1785600000;
  const auto parsed = jinja::Template::Parse(input, "template", environment.limits);
  if (!parsed.ok()) return false;
  const auto rendered = parsed->Render(*variables, environment);
  if (rendered.ok()) {
    for (const auto& [begin, end] : rendered->generations)
      TRIREME_CHECK(begin <= end && end <= rendered->text.size(), begin, " ", end, " ", rendered->text.size());
  }
  return rendered.ok();
}

std::vector<std::string> FuzzSeeds() {
  return {
      R"({{- bos_token }}{%- set ns = namespace(first=true, x='') %}{% for m in messages if m.role != 'system' %}
{%- if m['content'] is string and '</think>' in m.content %}{% set c = m.content.split('</think>')[-1].lstrip('\n') %}
{%- else %}{% set c = m.content | default('', true) %}{% endif %}{% set ns.first = false %}
{{ '<|' ~ m.role ~ '|>' + c | trim }}{% for t in m.tool_calls or [] %}{{ t.function.arguments | tojson(indent=2) }}
{%- endfor %}{{ loop.index0 }}{{ loop.last }}{{ loop.nextitem is defined }}{% else %}none{% endfor %}
{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %})",
      R"({% macro f(x, y=[1, 'a'], z={}) %}{{ x }}{{ (y | string)[::-1] }}{{ kwargs }}{{ varargs }}{{ caller() if caller }}{% endmacro %}
{% call(u) f(1, 2, 3, *[4], **{'k': 5}) %}in{{ u }}{% endcall %}{% filter upper | replace('A', 'bc') %}a{{ n }}{% endfilter %}
{% set block %}x{{ range(3) | list }}{% endset %}{{ block }}{% with a = 1, b = a %}{{ b }}{% endwith %}
{% for k, v in tools[0] | dictsort %}{{ k }}={{ v }}{% if loop.first %}{% continue %}{% endif %}{% break %}{% endfor %}
{{ tools | map(attribute='function.name') | join(', ') }}{{ messages | selectattr('role', 'equalto', 'user') | list | length }}
{% generation %}g{{ text.split() }}{% endgeneration %}{{ -n // 2 }}{{ 2 ** 5 % n }}{{ 1 < n <= 7 }}{{ not n in [7] }})",
      R"({{ "%s-%d" % (text, n) }}{{ "{} {a!r}".format(1, a=text) }}{{ strftime_now("%d %b %Y") }}{{ (1, 2.50, none, true, 'it''s') }}
{{ ns is defined }}{{ undefined_thing | length }}{% raw %}{{ raw }}{%- endraw %}{# comment -#} {{ [3, 1, 2] | sort(reverse=true) | first }}
{{ 'aXb'.replace('X', '-') | title }}{{ text | indent(2, true) }}{{ {'a': {'b': 1}}.a.b | string | int + 1.5 | float }}
{{ raise_exception('stop') if n == 8 else dict(a=1).items() | list }}{{ text[1:-1:2] }}{{ 'é' | tojson(ensure_ascii=true) }})",
  };
}

}  // namespace trireme
