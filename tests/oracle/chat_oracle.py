"""Chat templates: Jinja as Python renders it (Transformers' environment), and where the assistant speaks.

Run by run_all.py on templates of our own and random ones. Standalone, on other people's:
    chat_oracle.py --templates DIR      every *.jinja in DIR over conversations with and without system messages, tools,
                                        calls, reasoning, unusual characters; counts rendered, refused and raised
"""

import argparse
import collections
import contextlib
import datetime
import glob
import json
import os
import random
import re
import subprocess
import sys
import warnings

NOW = 1785600000  # as in tests/data/chat_main.cc
TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}


class Tool:
    """The binary of tests/data/chat_main.cc: a list of requests to a list of answers."""

    def __init__(self, path):
        self.path = path

    def __call__(self, requests):
        lines = "".join(json.dumps(request) + "\n" for request in requests)
        done = subprocess.run([self.path], input=lines, capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"chat_main: {done.stderr.strip()}")
        return [json.loads(line) for line in done.stdout.split("\n")[:-1]]


@contextlib.contextmanager
def fixed_clock():
    from transformers.utils import chat_template_utils as utils

    class Clock(datetime.datetime):
        @classmethod
        def now(cls):
            return datetime.datetime.fromtimestamp(NOW, datetime.timezone.utc).replace(tzinfo=None)

    before = utils.datetime
    utils.datetime = Clock
    try:
        yield
    finally:
        utils.datetime = before


def python_renders(source, variables):
    """The text, or None and what Python raises."""
    from transformers.utils.chat_template_utils import _compile_jinja_template

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _compile_jinja_template(source).render(**json.loads(json.dumps(variables))), None
    except Exception as error:  # whatever it is, the template does not render
        return None, f"{type(error).__name__}: {error}"


def python_renders_chat(source, messages, tools, extra, prompt):
    from transformers.utils.chat_template_utils import render_jinja_template

    # As apply_chat_template() does before it renders.
    messages = [{key: value for key, value in message.items() if value is not None} for message in messages]
    try:
        texts, _ = render_jinja_template([messages], tools, chat_template=source, add_generation_prompt=prompt, **TOKENS, **extra)
        return texts[0], None
    except Exception as error:
        return None, f"{type(error).__name__}: {error}"


def compare(answer, text):
    """same, raised (by both), refused (rendered by Python only, by a construct that we name), or what is wrong."""
    if text is None:
        return "raised" if "error" in answer else "NOT RAISED"
    if "text" in answer:
        return "same" if answer["text"] == text else "DIFFERENT"
    return "refused" if answer["error"].endswith(" is not supported") else "WRONGLY RAISED"


# --- our own snippets: one construct each, over VARIABLES. Those of REFUSED are refused, not approximated.

VARIABLES = {
    "s": " Ab c\n", "e": "", "u": "Zürich 𝄞\u2028x\u00a0", "q": "it's \"q\" \\ <b>&", "n": 7, "neg": -3, "f": 2.5, "big": 1e22, "small": 1.5e-7, "whole": 3.0,
    "t": True, "no": False, "none_": None, "l": [3, 1, 2], "words": ["b", "A", "c", "a"], "nested": [[1, [2]], {"k": [None, True]}],
    "d": {"b": 1, "a": {"x": [1, 2.0, "y"], "items": 5}, "C": None}, "empty_d": {}, "empty_l": [], "m": [{"role": "user", "content": "hi"}, {"role": "x", "n": 2}, {"role": "user", "n": 1}],
}  # fmt: skip
EXPRESSIONS = r"""
s ; s[0] ; s[-1] ; s[1:3] ; s[::-1] ; s[5:] ; s[-3:-1] ; u[1] ; u[7] ; u[::2] ; u[::-1] ; l[0] ; l[-1] ; l[1:] ; l[::-1] ; l[5] ; l['x'] ; l.x ; e[0] ; l[none_:2] ; l[::0] ; s[no] ; s[t] ; s['upper']() ; d['items'] ; d.items() ; d['b'] ; d.b ; d.zz ; d['zz'] ; d.a['items'] ; d.a.items
none_ ; t ; no ; f ; big ; small ; whole ; n ; neg ; nested ; d ; q ; [q] ; [u] ; ['\n\t\x00\x7f\u00e9\u200b'] ; (1,) ; (1, 'a') ; () ; {} ; {'a': 1, 'b': [none]} ; {1: 2, 'x': 3} ; {1: 2}[1] ; [1.0, 1e16, 1e15, 123456789.125, 0.0001, 0.00001, -0.0, 1e400] ; 1_000 ; 0x1F ; 0b101 ; 0o17 ; 1e3 ; 1.5e-3
1+2 ; 1-2 ; 3*4 ; 7/2 ; 7//2 ; -7//2 ; 7%3 ; -7%3 ; 7%-3 ; -7//-2 ; 2**10 ; 2**0 ; 2**3**2 ; 7.5//2 ; -7.5//2 ; 7.5%2 ; -7.5%2 ; 1/0 ; 1//0 ; 1%0 ; 1.0/0 ; n+f ; n-neg ; t+t ; t*3 ; 'a'*3 ; 3*'a' ; 'a'*-1 ; [1]*2 ; [1]+[2] ; (1,)+(2,) ; [1]+(2,) ; 'a'+1 ; 1+'a' ; none_+1 ; 'a'+none_ ; d+d ; -'a' ; -t ; +n ; --n ; -f
1 < 2 < 3 ; 1 < 2 > 3 ; 'a' < 'b' ; 'a' < 1 ; [1,2] < [1,3] ; [1] < [1,0] ; 1 == 1.0 ; 1 == t ; '1' == 1 ; [1] == (1,) ; d == d ; {'a':1,'b':2} == {'b':2,'a':1} ; none_ == none_ ; none_ < 1 ; x == y ; x == none_ ; x != y ; 1 in l ; 9 in l ; 'b' in d ; 'b' not in d ; 'A' in s ; 1 in s ; none_ in l ; [] in d ; x in l ; 1 in x ; 'a' in none_ ; 1 in 5 ; f == 2.5
t and no ; n and s ; e or 'x' ; e and x.y ; not e ; not l ; not x ; none_ or e or l ; t if no else 'z' ; 'y' if t ; 'y' if no ; ('y' if no) is defined ; x if x else 'z' ; s ~ n ~ none_ ~ x ~ l ; 1 ~ 2 ; x ~ 'a' ; x ; x.y ; x['y'] ; x() ; x + 1 ; x|length ; x|list ; x[1:] ; -x ; x > 1 ; x.y.z ; d.zz.y
s|trim ; s|upper ; s|lower ; s|title ; 'foo-bar (baz) [q] {x} <y> aB'|title ; s|capitalize ; s|length ; u|length ; l|length ; d|length ; n|length ; none_|length ; s|string ; n|string ; none_|string ; l|string ; l|join ; l|join(', ') ; words|join('-') ; m|join('|', attribute='role') ; s|replace('b','XX') ; s|replace('','-') ; 'aaa'|replace('a','b',2) ; n|replace('7','8') ; q|escape ; q|e ; q|safe ; (q|safe) + '<' ; '<' + (q|safe) ; (q|safe) ~ '<' ; (q|safe)|upper ; (q|escape)|string ; q|safe|length ; [q|safe] ; (q|safe)|trim
l|first ; l|last ; e|first ; empty_l|first ; empty_l|last ; d|first ; s|first ; s|last ; l|sort ; words|sort ; words|sort(case_sensitive=true) ; words|sort(reverse=true) ; l|sort(true) ; m|sort(attribute='role') ; m|sort(attribute='n') ; [1,'a']|sort ; l|reverse|list ; s|reverse ; d|list ; d|dictsort ; d|dictsort(true) ; d|dictsort(reverse=true) ; {'b':1,'a':2}|dictsort(by='value') ; d|items|list ; x|items|list ; l|items ; l|min ; l|max ; words|min ; words|max ; empty_l|min ; l|sum ; [1.5, 2]|sum ; m|sum('n') ; l|unique|list ; words|unique|list ; [1,1.0,t,'A','a']|unique|list
m|map(attribute='role')|list ; m|map(attribute='n')|list ; m|map(attribute='n', default=0)|list ; words|map('upper')|list ; words|map('replace','a','b')|list ; m|selectattr('n')|list ; m|selectattr('n','defined')|list ; m|selectattr('role','equalto','user')|list ; m|rejectattr('role','eq','user')|map(attribute='n')|list ; l|select('odd')|list ; l|reject('odd')|list ; l|select('>', 1)|list ; l|select|list ; l|select('gt',1)|join ; words|select('in', ['a','b'])|list ; m|map(attribute='role')|unique|join(',') ; m|map('nofilter')|list ; l|select('notest')|list ; m|selectattr('n')|length ; (m|selectattr('n')) is defined ; m|map(attribute='role')|first
d|tojson ; d|tojson(indent=2) ; nested|tojson(indent=4) ; d|tojson(sort_keys=true) ; u|tojson ; u|tojson(ensure_ascii=true) ; q|tojson ; '\x01\x7f\u2028'|tojson ; none_|tojson ; t|tojson ; f|tojson ; big|tojson ; x|tojson ; [x]|tojson ; (1,2)|tojson ; d|tojson(separators=(',',':')) ; empty_d|tojson(indent=2) ; {1: 'a'}|tojson ; 'a'|tojson(indent=2) ; d|tojson(indent='--') ; l|tojson(2) ; l|tojson(false, 1)
n|default('z') ; x|default('z') ; x|default ; e|default('z') ; e|default('z', true) ; none_|default('z') ; none_|default('z', boolean=true) ; x|d(1) ; '12'|int ; '12.7'|int ; 'x'|int ; 'x'|int(5) ; none_|int ; f|int ; t|int ; ' 8 '|int ; x|int ; '1.5'|float ; 'x'|float ; n|float ; '1e3'|float ; f|round ; 3.5|round ; 2.5|round ; f|round(method='floor') ; f|round(method='ceil') ; n|round ; neg|abs ; 'a'|abs ; l|batch(2)|list ; l|batch(2,0)|list ; l|slice(2)|list ; range(5)|batch(2)|list
'a\nb\n\nc'|indent ; 'a\nb\n\nc'|indent(2,true) ; 'a\nb\n\nc'|indent(2,true,true) ; 'a\nb'|indent('> ') ; 'a'|center(5) ; 'foo bar baz qux'|truncate(9) ; 'foo bar baz qux'|truncate(9,true) ; 'foo bar baz qux'|truncate(11) ; 'foo bar baz qux'|truncate(11,false,'...',0) ; '%s, %s'|format('a',1) ; '%(a)s'|format(a=2) ; s|nofilter ; s|wordwrap ; n|attr('x') ; l|count ; s|trim('\n c') ; (s|trim)[0] ; n|trim ; n|upper ; l|first|string|upper
s.strip() ; s.strip(' c\n') ; s.lstrip() ; s.rstrip() ; s.rstrip('\n') ; u.strip() ; s.split() ; s.split(' ') ; s.split('b', 1) ; 'a,b,c'.split(',', 1) ; 'a,b,c'.rsplit(',', 1) ; ' a  b '.split() ; ' a  b '.split(none, 1) ; ' a  b '.rsplit(none, 1) ; 'a\nb\r\nc'.splitlines() ; 'a\nb'.splitlines(true) ; s.split('') ; s.upper() ; s.lower() ; s.title() ; "they're bill's".title() ; s.capitalize() ; s.startswith(' A') ; s.startswith(('x',' ')) ; s.endswith('c') ; s.endswith('\n') ; s.find('b') ; s.find('z') ; u.find('x') ; s.index('z') ; s.count('b') ; s.replace('b','c') ; s.replace('b','c',0) ; s.join(['a','b']) ; ', '.join(l) ; ', '.join(words) ; 'x'.isdigit() ; '12'.isdigit() ; 'ab'.isalpha() ; 'a1'.isalnum() ; ' '.isspace() ; 'AB'.isupper() ; 'ab'.islower() ; s.zfill(9) ; '-5'.zfill(4) ; 'a'.ljust(3,'.') ; 'a'.rjust(3) ; 'a'.center(4,'*') ; 'abc'.removeprefix('a') ; 'abc'.removesuffix('c') ; 'a-b-c'.partition('-') ; 'a-b-c'.rpartition('-') ; 'abc'.partition('x') ; s.foo ; s.foo() ; s.__class__ ; '{}-{}'.format(1,'a') ; '{0}{0}'.format(2) ; '{a}'.format(a=3) ; '{{}}'.format() ; '{}'.format() ; '{:.2f}'.format(f) ; '{:>5}'.format('a') ; '{x.y}'.format(x=1) ; '%d%%' % 5 ; '%s' % (1,) ; '%s %s' % (1,) ; '%.1f' % f ; '%05d' % 3 ; '%s' % l ; '%r' % s ; '%(b)s' % d ; 'a' % 1 ; 'a' % d ; s.encode()
d.get('b') ; d.get('zz') ; d.get('zz', 5) ; d.get('b', 5) ; d.keys() ; d.values() ; d.items() ; d.items()|list ; d.keys()|list ; d.items()|length ; d.items()[0] ; d.copy() ; d.pop('b') ; d.update({}) ; l.append(1) ; l.pop() ; l.index(1) ; l.index(9) ; l.count(1) ; l.append ; d.pop is defined ; l.copy() ; (d.a.x)[0] ; d.get(n) ; d.get([]) ; d.get
n is odd ; n is even ; n is divisibleby 7 ; n is divisibleby(2) ; n is number ; f is float ; n is integer ; t is integer ; t is boolean ; n is boolean ; t is true ; no is false ; n is true ; s is string ; n is string ; d is mapping ; l is mapping ; l is sequence ; s is sequence ; d is sequence ; n is sequence ; x is sequence ; x is iterable ; l is iterable ; n is iterable ; none_ is none ; x is none ; x is defined ; x is not defined ; x is undefined ; d.zz is defined ; d.b is defined ; s is lower ; 'ab' is lower ; 'AB' is upper ; n is eq 7 ; n is equalto(7) ; n is ne 7 ; n is gt 3 ; n is ge 7 ; n is lt 3 ; n is le 7 ; n is in l ; 1 is in l ; none_ is sameas none ; n is sameas 7 ; range is callable ; s is callable ; x is callable ; q is escaped ; (q|safe) is escaped ; 'upper' is filter ; 'odd' is test ; n is notest ; n is defined and n is odd ; not n is odd ; n is not odd ; d.items() is iterable ; l|select|list is sequence
range(3)|list ; range(1,4)|list ; range(5,0,-2)|list ; range(0)|list ; range(3)|length ; range(10)[2] ; range(3)|sum ; range(200000)|length ; range(2) ; dict(a=1,b=2) ; dict(d, z=1) ; dict([('a',1)]) ; dict() ; namespace(a=1).a ; namespace(a=1).b ; namespace(_a=1) ; namespace({'k': 2}).k ; namespace(a=1)['a'] ; raise_exception('boom') ; strftime_now('%Y-%m-%d') ; strftime_now('%d %b %Y %H:%M %A %-d %y%%') ; lipsum() ; cycler(1) ; joiner
dict ; namespace(a=1) ; range ; s.upper ; x is defined or n ; (1, 2) | tojson ; [n, f, t, none_]|join(',') ; n if n > 3 else neg ; (n, 'a')[0] ; {'a': {'b': 2}}['a'].b ; 'a' 'b' ; "it's" ~ 'a"b' ; '\u00e9\x41\101\q' ; l[n-5] ; d[words[0]] ; m[0]['content'][1:] ; m[-1].role ; m[1:]|map(attribute='role')|list ; 'ab'.upper().lower().strip('a') ; (s if t else e).strip() ; [1,2,3,][1] ; {'a':1,} ; s.split()|first ; loop ; loop.index ; self ; varargs ; caller
1 is 1 ; n is 7 ; ((1)) ; [[]] ; 'a' if 'b' if 'c' ; 1 if 1 else 2 if 3 else 4 ; not not t ; n == 7 == t ; [x, none_] ; x == x ; [x] == [x] ; u|upper ; u|lower ; 'é'|upper ; '中文 a'|title ; '日本'|upper ; 9223372036854775807 ; 9223372036854775807 + 1 ; 9999999999999999999 ; 2**63 ; 1e308*10 ; f ** 2 ; n ** -1 ; (l, d)|string ; n.real ; s|list ; u|list
"""
REFUSED = {
    "n.real", "range(2)", "lipsum()", "cycler(1)", "joiner", "dict", "range", "namespace(a=1)", "s.upper", "f ** 2", "n ** -1", "2**63", "9999999999999999999",
    "9223372036854775807 + 1", "u|upper", "u|lower", "'é'|upper", "s|wordwrap", "s.encode()", "d.get", "d['items']", "d.a.items", "l|items", "s.__class__", "'{:>5}'.format('a')",
    "'{x.y}'.format(x=1)", "'%05d' % 3", "[1.5, 2]|sum", "n is sameas 7", "self", "{% for x in l recursive %}{{ x }}{% endfor %}", "{% block a %}x{% endblock %}",
    "{% autoescape true %}{{ q }}{% endautoescape %}", "{% for x in l %}{{ loop }}{% endfor %}",
}  # fmt: skip
STATEMENTS = [
    "{% for x in l %}{{ loop.index }}{{ loop.index0 }}{{ loop.first }}{{ loop.last }}{{ loop.length }}{{ loop.revindex }}{{ loop.revindex0 }}{{ loop.previtem }}{{ loop.nextitem }}{{ loop.depth }} {% endfor %}",
    "{% for x in l if x > 1 %}{{ x }}{{ loop.length }}{{ loop.last }}{% else %}none{% endfor %}",
    "{% for x in l if x > 9 %}{{ x }}{% else %}none{{ x }}{% endfor %}",
    "{% for x in l %}{% if x == 1 %}{% continue %}{% endif %}{{ x }}{% endfor %}",
    "{% for x in l %}{% if x == 1 %}{% break %}{% endif %}{{ x }}{% else %}E{% endfor %}",
    "{% for x in l %}{% break %}{% else %}E{% endfor %}{% for x in l %}{% continue %}{% else %}E{% endfor %}",
    "{% for k, v in d.items() %}{{ k }}={{ v }};{% endfor %}{% for a, (b, c) in [[1, [2, 3]]] %}{{ a }}{{ b }}{{ c }}{% endfor %}",
    "{% for a, b in [[1]] %}{% endfor %}",
    "{% for a, b in ['xy', 'zw'] %}{{ a }}-{{ b }} {% endfor %}",
    "{% for x in none_ %}{% endfor %}",
    "{% for x in x %}{% else %}E{% endfor %}",
    "{% for x in u %}{{ x }}.{% endfor %}",
    "{% for x in l %}{{ loop.cycle('a', 'b') }}{{ loop.changed(x > 1) }}{% endfor %}",
    "{% for x in l %}{% for y in l %}{{ loop.index }}{% endfor %}{{ loop.index }} {% endfor %}",
    "{% for x in m | map(attribute='role') %}{{ x }}{{ loop.length }}{{ loop.last }}{% endfor %}",
    "{% for x in l recursive %}{{ x }}{% endfor %}",
    "{% set a = 1 %}{% for x in l %}{{ a }}{% set a = x %}{{ a }}{% endfor %}{{ a }}",
    "{% for x in l %}{{ a }}{% set a = x %}{% endfor %}{{ a }}",
    "{% for x in l %}{% for y in [1] %}{{ n }}{% endfor %}{% set n = x %}{% endfor %}{{ n }}",
    "{% for x in [1] %}{{ n }}{% endfor %}{% set n = 1 %}",
    "{% if t %}{% set a = 1 %}{% endif %}{{ a }}{% if no %}{% set s = 1 %}{% endif %}{{ s }}",
    "{% set ns = namespace(a=0) %}{% for x in l %}{% set ns.a = ns.a + x %}{% endfor %}{{ ns.a }}{{ ns.b }}",
    "{% set ns.a = 1 %}", "{% set d.a = 1 %}", "{% set ns = namespace() %}{% set ns._a = 1 %}", "{% set ns = namespace() %}{% set ns.a, b = 1, 2 %}{{ ns.a }}{{ b }}",
    "{% set a, b = 1, 2 %}{{ a }}{{ b }}{% set a = 1, 2 %}{{ a }}", "{% set a %}x{{ n }}{% endset %}{{ a }}{{ a | length }}", "{% set a | upper | trim %} x{{ n }} {% endset %}[{{ a }}]",
    "{% set a %}{% set b = 1 %}{{ b }}{% endset %}{{ a }}{{ b }}",
    "{% set ns = namespace() %}{% set ns.x %}q{% endset %}{{ ns.x }}",
    "{% macro f(a, b=2, c='z') %}{{ a }}{{ b }}{{ c }}{% endmacro %}{{ f(1) }}{{ f(1, c=3) }}{{ f() }}{{ f(1, 2, 3) }}{{ f(b=1, a=2) }}",
    "{% macro f(a) %}{% endmacro %}{{ f(1, 2) }}", "{% macro f(a) %}{% endmacro %}{{ f(z=2) }}", "{% macro f(a, a) %}{% endmacro %}", "{% macro f(a=1, b) %}{% endmacro %}",
    "{% macro f() %}{{ varargs }}{{ kwargs }}{% endmacro %}{{ f(1, 2, z=3) }}", "{% macro f(a, b=a) %}{{ b }}{% endmacro %}{{ f(5) }}", "{% macro f(a=b, b=1) %}{{ a }}{% endmacro %}{{ f() }}",
    "{% macro f(x) %}[{{ caller(x) }}]{% endmacro %}{% call(y) f(3) %}{{ y }}{{ n }}{% endcall %}", "{% macro f() %}[{{ caller() }}]{% endmacro %}{{ f() }}", "{% macro f() %}{% endmacro %}{% call f() %}x{% endcall %}",
    "{% macro f(v) %}{% if v is mapping %}{% for k, w in v | dictsort %}{{ k }}:{{ f(w) }},{% endfor %}{% elif v is iterable and v is not string %}[{% for w in v %}{{ f(w) }}{% if not loop.last %};{% endif %}{% endfor %}]{% else %}{{ v }}{% endif %}{% endmacro %}{{ f(d) }}{{ f(nested) }}",
    "{% macro f() %}{{ a }}{% endmacro %}{% set a = 1 %}{{ f() }}{% set a = 2 %}{{ f() }}", "{% macro f() %}{{ n }}{% set n = 5 %}{{ n }}{% endmacro %}{{ f() }}{{ n }}", "{{ f() }}{% macro f() %}x{% endmacro %}",
    "{% for x in l %}{% macro f() %}{{ x }}{% endmacro %}{{ f() }}{% endfor %}{{ f() }}", "{% macro f(n) %}{{ n }}{% if n > 0 %}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(5) }}", "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "{% filter upper %}a{{ s }}{% endfilter %}", "{% filter replace('a', 'b') | upper %}xa{% endfilter %}", "{% with a = 1, b = a %}{{ a }}{{ b }}{% endwith %}{{ a }}", "{% with %}{% set z = 1 %}{{ z }}{% endwith %}{{ z }}",
    "{% generation %}x{{ n }}{% set z = 1 %}{{ z }}{% endgeneration %}{{ z }}", "{% raw %}{{ x }}{% y %}{% endraw %}", "a{%- raw -%}  b  {%- endraw -%} c", "{# c #}a{#- c -#} b\n  {# d #}\nc",
    "  {% if t %}\n  x\n  {% endif %}\n y\n", "{% if t -%}\n  x\n{%- endif %}\n\ny", "  {%+ if t %} x{% endif +%}\n y", "{{ n -}}  \n {{- n }}\n", "a\r\nb\r{{ n }}\r\n", "{% if t %}\n\n x{% endif %}\n\n", "x {% set a = 1 %} y\n {% set b = 2 %} z",
    "\n{% for x in l %}\n  {{ x }}\n{% endfor %}\n\n", "{{ '{{' }}{{ '%}' }}{{ {'a': {'b': 1}}['a'] }}", "{{ [1,\n 2] }}\n{% if\n t\n%}y{% endif %}", "{% if t: %}a{% endif %}", "{% print n, s %}", "{{ n }} {{ n", "{% if t %}", "{% endif %}", "{% foo %}", "{{ 1 + }}", "{{ (1 }}", "{{ 'a }}",
    "{% else %}", "{% for x in %}{% endfor %}", "{% set 1 = 2 %}", "{% set true = 2 %}", "{% break %}", "{% for loop in l %}{% endfor %}", "{% for x in l %}{% set loop = 1 %}{% endfor %}", "{% for x in l %}{% macro f() %}{% break %}{% endmacro %}{% endfor %}",
    "{{ n | nofilter }}", "{% if no %}{{ n | nofilter }}{% endif %}", "{{ n is notest }}", "{{ (n | nofilter) if no else 1 }}", "{% if no %}{% for x in l %}{{ x | nofilter }}{% endfor %}{% endif %}", "{% block a %}x{% endblock %}", "{% include 'x' %}", "{% extends 'x' %}", "{% autoescape true %}{{ q }}{% endautoescape %}", "{% do l.append(1) %}",
    "{{ f(**d) }}", "{% macro f(b, a, C) %}{{ b }}{{ C }}{% endmacro %}{{ f(**d) }}", "{% macro f(a, b) %}{{ a }}{{ b }}{% endmacro %}{{ f(*[1, 2]) }}", "{{ {}[[]] }}", "{{ dict(**{'a': 1}) }}", "{% set x = m | selectattr('n') %}{{ x | list | length }}{{ x | list | length }}", "{% set x = m | map(attribute='role') %}{% for r in x %}{{ r }}{% break %}{% endfor %}{{ x | list }}",
    "{% if x is defined and x.y %}a{% elif n %}b{% else %}c{% endif %}", "{% if no %}a{% elif no %}b{% endif %}", "{% for x in l %}{{ loop }}{% endfor %}", "{% for x in l %}{{ loop.foo }}{% endfor %}", "{% set x = 1 if no %}{{ x is defined }}{{ x }}", "{% for i in range(3) %}{% set ns = namespace(v=i) %}{{ ns.v }}{% endfor %}{{ ns is defined }}",
    "{% set f = s.strip %}{{ f() }}", "{% set up = s.upper %}{{ up() }}", "{{ (s ~ '\n')|length }}", "{{ m | tojson(indent=2) | indent(2) }}", "{%- for x in l -%} {{ x }} {%- endfor -%}", "{% for x in [1, 2] %}{% if loop.first %}{% set v = 'a' %}{% endif %}{{ v }}{% endfor %}",
]  # fmt: skip

# --- whole templates in the manner of real ones

TEMPLATES = {
    "chatml": "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou help.<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    "headers": "{{- bos_token }}\n{%- if messages[0]['role'] == 'system' %}\n    {%- set system = messages[0]['content']|trim %}\n    {%- set messages = messages[1:] %}\n{%- else %}\n    {%- set system = '' %}\n{%- endif %}\n{{- '<|h|>system<|/h|>\\n\\n' }}\n{%- if tools is not none %}\n    {{- 'Environment: ipython\\n' }}\n    {%- for t in tools %}\n        {{- t | tojson(indent=4) }}\n        {{- '\\n\\n' }}\n    {%- endfor %}\n{%- endif %}\n{{- 'Today: ' ~ strftime_now('%d %b %Y') }}\n{{- system ~ '<|eot|>' }}\n{%- for message in messages %}\n    {%- if message.tool_calls %}\n        {{- '<|h|>assistant<|/h|>\\n\\n' }}\n        {%- for c in message.tool_calls %}{%- set c = c.function %}\n        {{- '{\"name\": \"' + c.name + '\", \"parameters\": ' + (c.arguments | tojson) + '}' }}\n        {%- endfor %}\n        {{- '<|eot|>' }}\n    {%- elif message.role == 'tool' %}\n        {{- '<|h|>ipython<|/h|>\\n\\n' + (message.content | tojson if message.content is mapping else message.content) + '<|eot|>' }}\n    {%- else %}\n        {{- '<|h|>' + message['role'] + '<|/h|>\\n\\n'+ message['content'] | trim + '<|eot|>' }}\n    {%- endif %}\n{%- endfor %}\n{%- if add_generation_prompt %}\n    {{- '<|h|>assistant<|/h|>\\n\\n' }}\n{%- endif %}\n",
    "strict": "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set sys = messages[0]['content'] + '\n\n' %}{% set rest = messages[1:] %}{% else %}{% set sys = '' %}{% set rest = messages %}{% endif %}{% for m in rest %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}{% if m['role'] == 'user' %}{{ '[INST] ' + (sys if loop.first else '') + m['content'] + ' [/INST]' }}{% else %}{{ ' ' + m['content'].strip() + eos_token }}{% endif %}{% endfor %}",
    "thinking": "{%- set ns = namespace(last=messages|length - 1) %}{%- for m in messages[::-1] %}{%- set i = (messages|length - 1) - loop.index0 %}{%- if m.role == 'user' and m.content is string %}{%- set ns.last = i %}{% break %}{%- endif %}{%- endfor %}{%- for m in messages %}{%- if m.role == 'assistant' %}{%- set content = m.content %}{%- set thought = '' %}{%- if m.reasoning_content is string %}{%- set thought = m.reasoning_content %}{%- elif '</think>' in (content or '') %}{%- set thought = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}{%- set content = content.split('</think>')[-1].lstrip('\\n') %}{%- endif %}{{- '<|im_start|>assistant\\n' }}{%- if loop.index0 > ns.last %}{{- '<think>\\n' + thought.strip('\\n') + '\\n</think>\\n\\n' }}{%- endif %}{{- content or '' }}{%- for c in m.tool_calls or [] %}{{- '\\n<tool_call>\\n' ~ (c.function | tojson) ~ '\\n</tool_call>' }}{%- endfor %}{{- '<|im_end|>\\n' }}{%- else %}{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{%- endif %}{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}{%- endif %}",
    "prompts reasoning": "{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %}{{ '<A>' + (m.content or '').split('</think>')[-1] + eos_token }}{% else %}{{ '<U>' + m.content }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<A><think>\n' }}{% endif %}",
    "marked": "{% for m in messages %}<|{{ m.role }}|>\n{% if m.role == 'assistant' %}{% generation %}{{ m.content or '' }}{{ eos_token }}{% endgeneration %}{% else %}{{ m.content }}{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}",
    "ends once": "{% for m in messages %}{{ '<|' + m.role + '|>\n' + (m.content or '') + '<|end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}",
    "no prompt": "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}",
    "always prompts": "{% for m in messages %}{{ '<' + m.role + '>' + (m.content or '') + '<end>' }}{% endfor %}<assistant>",
}  # fmt: skip

WEATHER = {"type": "function", "function": {"name": "get_weather", "description": "The weather — at a \"place\" <now> & 'then'.", "parameters": {"type": "object",
    "properties": {"city": {"type": "string", "description": "Where"}, "unit": {"type": "string", "enum": ["c", "f"]}, "days": {"type": "integer", "default": 3}}, "required": ["city"]}}}  # fmt: skip
ADD = {"type": "function", "function": {"name": "add", "description": "", "parameters": {"type": "object",
    "properties": {"a": {"type": "number"}, "b": {"type": "array", "items": {"type": "object", "properties": {"x": {"type": "boolean"}}}}}, "required": []}}}  # fmt: skip
PLAIN = {"type": "function", "function": {"name": "plain", "description": "Plain.", "parameters": {"type": "object", "properties": {"a": {"type": "string", "description": "An a."}, "b": {"type": "number", "description": "A b."}}, "required": ["a"]}}}  # fmt: skip
UNION = {"type": "function", "function": {"name": "u", "description": "d", "parameters": {"type": "object", "properties": {"p": {"type": ["integer", "null"]}}}}}


def say(role, content, **more):
    return {"role": role, "content": content, **more}


def call(arguments, name="get_weather", identifier="abcdefghi"):
    return {"id": identifier, "type": "function", "function": {"name": name, "arguments": arguments}}


def result(content, name="get_weather", identifier="abcdefghi"):
    return {"role": "tool", "name": name, "tool_call_id": identifier, "content": content}


# name: messages, tools
CONVERSATIONS = {
    "one": ([say("user", "Hi")], None),
    "system": ([say("system", "Be brief."), say("user", "Hi"), say("assistant", "Hello!"), say("user", "How?\n")], None),
    "turns": ([say("user", "a"), say("assistant", "b"), say("user", "c"), say("assistant", "d")], None),
    "forty turns": ([m for i in range(40) for m in (say("user", f"q{i}"), say("assistant", f"r{i}"))], None),
    "characters": ([say("system", ""), say("user", " x \n\n y "), say("assistant", "  <think>\nhm\n</think>\n\nok "), say("user", "ü 𝄞 日本 <|im_end|> {{ x }} {% y %} \"q\" '\\ \t\u2028\u00a0\u200b\x7f"), say("assistant", "")], None),
    "tools": ([say("system", "S"), say("user", "weather?")], [WEATHER, ADD]),
    "simple tool": ([say("user", "weather?")], [WEATHER]),
    "plain tool": ([say("system", "S"), say("user", "q"), say("assistant", "r"), say("user", "s")], [PLAIN]),
    "union tool": ([say("user", "weather?")], [UNION]),
    "call": ([say("user", "weather?"), say("assistant", "", tool_calls=[call({"city": "Paris ü", "unit": "c", "days": 2, "n": None, "t": True, "f": 1.5, "l": [1, "a"], "d": {"k": []}})]), result('{"t": 20}'), say("assistant", "It is 20.")], [WEATHER]),
    "two calls": ([say("user", "weather?"), say("assistant", "Looking.", tool_calls=[call({"city": "P"}), call({"a": 1, "b": [{"x": True}]}, "add", "bcdefghij")]), result("20"), result("3", "add", "bcdefghij"), say("assistant", "Done."), say("user", "ok")], [WEATHER, ADD]),
    "call as text": ([say("user", "weather?"), say("assistant", None, tool_calls=[call('{"city": "P"}')]), result("20")], [WEATHER]),
    "reasoning": ([say("user", "q"), say("assistant", "ans", reasoning_content="because"), say("user", "r"), say("assistant", "ans2", reasoning_content="b2")], None),
    "old reasoning": ([say("user", "q"), say("assistant", "ans", thinking="because")], None),
    "parts": ([say("user", [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]), say("assistant", [{"type": "text", "text": "c"}])], None),
    "image": ([say("user", [{"type": "image"}, {"type": "text", "text": "what?"}])], None),
    "developer": ([say("developer", "D"), say("user", "x")], None),
    "odd roles": ([say("narrator", "D"), say("user", "x"), say("user", "y")], None),
    "assistant first": ([say("assistant", "first"), say("user", "x")], None),
    "empty": ([], None),
    "no content": ([{"role": "user"}], None),
}  # fmt: skip
EXTRAS = [{}, {"enable_thinking": False, "functions": json.dumps([WEATHER]), "datetime": "now"}, {"enable_thinking": True, "documents": [{"title": "T", "text": "body"}], "reasoning_effort": "low", "date_string": "26 Jul 2024"}]  # fmt: skip

# What the assistant says holds SAID, what others say HEARD, so that spans can be judged without knowing the template.
SPOKEN = {
    "turns": ([say("system", "HEARD s"), say("user", "HEARD 1"), say("assistant", "SAID one"), say("user", "HEARD 2"), say("assistant", "SAID two"), say("user", "HEARD 3"), say("assistant", "SAID three")], None),
    "no system": ([say("user", "HEARD 1"), say("assistant", "SAID one"), say("user", "HEARD 2"), say("assistant", "SAID two")], None),
    "white space": ([say("user", "HEARD 1"), say("assistant", "  SAID one \n"), say("user", "HEARD 2\n"), say("assistant", "SAID two\n\n")], None),
    "reasoning": ([say("user", "HEARD 1"), say("assistant", "SAID one", reasoning_content="SAID to itself"), say("user", "HEARD 2"), say("assistant", "SAID two", reasoning_content="SAID to itself again")], None),
    "thinking": ([say("user", "HEARD 1"), say("assistant", "<think>\nSAID a\n</think>\n\nSAID one"), say("user", "HEARD 2"), say("assistant", "<think>\nSAID b\n</think>\n\nSAID two")], None),
    "calls": ([say("user", "HEARD 1"), say("assistant", "", tool_calls=[call({"city": "SAID c"})]), result("HEARD t"), say("assistant", "SAID one"), say("user", "HEARD 2"), say("assistant", "SAID two")], [WEATHER]),
    "text and calls": ([say("user", "HEARD 1"), say("assistant", "SAID zero", tool_calls=[call({"city": "SAID c"})]), result("HEARD t"), say("assistant", "SAID one")], [WEATHER]),
}  # fmt: skip


def random_template(random):
    """Statements that set, read and hide a few names in each other, to try which variable a name means."""
    names = ["a", "b", "n"]

    def body(depth):
        return "".join(statement(depth) for _ in range(random.randint(1, 4)))

    def value():
        return random.choice([random.choice(names), str(random.randint(0, 9)), f"{random.choice(names)} ~ {random.randint(0, 9)}"])

    def statement(depth):
        kind = random.randrange(12) if depth > 0 else random.randrange(4)
        name = random.choice(names)
        if kind < 2:
            return f"[{{{{ {name} }}}}]"
        if kind < 4:
            return f"{{% set {name} = {value()} %}}"
        inside = body(depth - 1)
        if kind < 6:
            return f"{{% if {random.choice(['true', 'false', name, name + ' is defined'])} %}}{inside}{{% elif {name} %}}{body(depth - 1)}{{% else %}}{body(depth - 1)}{{% endif %}}"
        if kind < 9:
            test = random.choice(["", f" if {name} != 1"])
            return f"{{% for {random.choice(names)} in [1, 2]{test} %}}{inside}{random.choice(['', '{{ loop.index }}', '{% break %}', '{% if loop.last %}{% continue %}{% endif %}'])}{{% else %}}{body(depth - 1)}{{% endfor %}}"
        if kind == 9:
            return f"{{% set {name} %}}{inside}{{% endset %}}"
        if kind == 10:
            return f"{{% macro f({name}={value()}) %}}{inside}{{% endmacro %}}{{{{ f() }}}}{{{{ f({random.randint(0, 9)}) }}}}"
        return random.choice([f"{{% with {name} = {value()} %}}{inside}{{% endwith %}}", f"{{% filter upper %}}{inside}{{% endfilter %}}", f"{{% generation %}}{inside}{{% endgeneration %}}"])  # fmt: skip

    return body(3)


def check_snippets(checks, tool):
    expressions = [e.strip() for line in EXPRESSIONS.strip().split("\n") for e in line.split(" ; ")]
    sources = [(e, f"{{{{ {e} }}}}") for e in expressions] + [(source, source) for source in STATEMENTS]
    answers = tool([{"source": source, "variables": VARIABLES} for _, source in sources])
    outcomes = collections.Counter()
    for (shown, source), answer in zip(sources, answers):
        text, error = python_renders(source, VARIABLES)
        outcome = compare(answer, text)
        outcomes[outcome] += 1
        if outcome == "refused" and shown not in REFUSED or outcome not in ("same", "raised", "refused"):
            print(f"      {outcome}: {shown!r}: Python {text!r} {error or ''}, ours {answer}")
            outcomes["unexpected"] += 1
    print(f"      {dict(outcomes)}")
    checks.equal(f"{len(sources)} expressions and statements as in Python or refused as listed: others", outcomes["unexpected"], 0)


def check_random(checks, tool, count=700):
    generator = random.Random(1)
    sources = [random_template(generator) for _ in range(count)]
    variables = {"n": 5, "b": "B"}
    wrong = 0
    outcomes = collections.Counter()
    for source, answer in zip(sources, tool([{"source": source, "variables": variables} for source in sources])):
        text, error = python_renders(source, variables)
        outcome = compare(answer, text)
        outcomes[outcome] += 1
        if outcome not in ("same", "raised"):
            wrong += 1
            if wrong <= 3:
                print(f"      {outcome}: {source!r}: Python {text!r} {error or ''}, ours {answer}")
    print(f"      {dict(outcomes)}")
    checks.equal(f"{count} random templates (names in frames in each other) as in Python: others", wrong, 0)


def check_templates(checks, tool, templates, limit_refused):
    """Every template over every conversation. At most the share `limit_refused` of them may refuse something."""
    cases = [(name, *case, extra, prompt) for name in templates for case in CONVERSATIONS.values() for extra in EXTRAS for prompt in (False, True)]
    answers = tool([{"source": templates[name], "messages": m, "tools": t, "tokens": TOKENS, "extra": extra, "prompt": prompt} for name, m, t, extra, prompt in cases])
    outcomes = collections.defaultdict(collections.Counter)
    for (name, messages, tools, extra, prompt), answer in zip(cases, answers):
        text, error = python_renders_chat(templates[name], messages, tools, extra, prompt)
        outcome = compare(answer, text)
        outcomes[name][outcome] += 1
        if outcome not in ("same", "raised") and outcomes[name][outcome] == 1:
            print(f"      {name}: {outcome}: {messages}: Python {(text or '')[-200:]!r} {error or ''}, ours {str(answer)[-300:]}")
    total = sum(outcomes.values(), collections.Counter())
    exact = sum(1 for name in templates if not set(outcomes[name]) - {"same", "raised"})
    silent = [name for name in templates if not outcomes[name]["same"]]
    print(f"      {len(templates)} templates, {len(cases)} renderings: {dict(total)}; rendered nothing in Python either: {silent}")
    checks.equal(f"renderings that differ from Python's, or raise otherwise, of {len(cases)}", sum(n for o, n in total.items() if o not in ("same", "raised", "refused")), 0)
    checks.within(f"templates of {len(templates)} that refuse a conversation", len(templates) - exact, limit_refused * len(templates))


def spans_problems(text, spans, messages):
    data = text.encode()
    inside = "\0".join(data[begin:end].decode() for begin, end in spans)
    ends = [0] + [end for _, end in spans]
    outside = "\0".join(data[a:b].decode() for a, b in zip(ends, [begin for begin, _ in spans] + [len(data)]))
    problems = []
    if "HEARD" in inside:
        problems.append("others' words within")
    if "SAID" in outside:
        problems.append("the assistant's words outside")
    if len(spans) != sum(m["role"] == "assistant" for m in messages):
        problems.append(f"{len(spans)} spans")
    return problems


def check_spans(checks, tool, templates, show):
    cases = [(name, conversation, *SPOKEN[conversation]) for name in templates for conversation in SPOKEN]
    answers = tool([{"source": templates[name], "messages": m, "tools": t, "tokens": TOKENS, "extra": {}, "spans": True} for name, _, m, t in cases])
    outcomes, refused, wrong = collections.Counter(), set(), 0
    for (name, conversation, messages, tools), answer in zip(cases, answers):
        text, _ = python_renders_chat(templates[name], messages, tools, {}, False)
        if text is None or "error" in answer:
            outcomes["raised" if text is None else "refused"] += 1
            if text is not None:
                refused.add(name)
                if show:
                    print(f"      {name}, {conversation}: {answer['error']}")
            continue
        problems = spans_problems(answer["text"], answer["spans"], messages) + ([] if answer["text"] == text else ["another text"])
        outcomes["right" if not problems else "wrong"] += 1
        outcomes["without an end mark"] += not answer["marked"]
        if problems:
            print(f"      {name}, {conversation}: {problems}: {answer}")
            wrong += 1
    print(f"      {dict(outcomes)}; a span refused in: {sorted(refused)}")
    checks.equal(f"conversations with wrong spans of {len(cases)}", wrong, 0)
    checks.above("conversations with spans", outcomes["right"], len(cases) // 2)


def check_exact_spans(checks, tool):
    """What is learned, word for word, where that is known."""
    messages, tools = SPOKEN["no system"]
    expected = {
        "chatml": ["SAID one<|im_end|>", "SAID two<|im_end|>"],
        "headers": ["SAID one<|eot|>", "SAID two<|eot|>"],
        "strict": [" SAID one</s>", " SAID two</s>"],
        "thinking": ["SAID one<|im_end|>", "<think>\n\n</think>\n\nSAID two<|im_end|>"],
        "prompts reasoning": ["SAID one</s>", "SAID two</s>"],
        "marked": ["SAID one</s>", "SAID two</s>"],
        "ends once": ["SAID one<|end|>", "SAID two<|end|>\n</s>"],
        "no prompt": ["assistant: SAID one\n", "assistant: SAID two\n"],
        "always prompts": None,
    }
    for name, spans in expected.items():
        answer = tool([{"source": TEMPLATES[name], "messages": messages, "tools": tools, "tokens": TOKENS, "extra": {}, "spans": True}])[0]
        found = [answer["text"].encode()[a:b].decode() for a, b in answer["spans"]] if "spans" in answer else None
        checks.equal(f"{name}: what is learned", found, spans)


def check(checks, tool, folder=None):
    with fixed_clock():
        if folder is None:
            check_snippets(checks, tool)
            check_random(checks, tool)
            check_exact_spans(checks, tool)
            check_templates(checks, tool, TEMPLATES, limit_refused=0)
            check_spans(checks, tool, TEMPLATES, show=False)
            return
        templates = {os.path.basename(path): open(path, encoding="utf-8").read() for path in sorted(glob.glob(os.path.join(folder, "*.jinja")))}
        check_templates(checks, tool, templates, limit_refused=0.2)
        check_spans(checks, tool, templates, show=True)


def run(checks, probe):
    """As run_all.py calls it: the tool lies beside the probe."""
    check(checks, Tool(os.path.join(os.path.dirname(probe.binary), "chat_main")))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tool", default="build/bin/chat_main")
    parser.add_argument("--templates", help="a folder of *.jinja; left out: our own templates, snippets and random ones")
    args = parser.parse_args()
    from checks import Checks

    checks = Checks()
    check(checks, Tool(args.tool), args.templates)
    return checks.conclude()


if __name__ == "__main__":
    sys.exit(main())
