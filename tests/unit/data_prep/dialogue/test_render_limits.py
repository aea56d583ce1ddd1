"""What a chat template from outside may cost: it ends, in time, without filling the memory."""

import time
import tracemalloc

import jinja2
import pytest

from data_prep.dialogue import render_limits
from data_prep.dialogue.chat_template import LLAMA3
from data_prep.dialogue.sandbox import RENDER_ERRORS, sandbox

LONG = "{% set s = 'a' * 1000000 %}"
FOREVER = "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}"


def render(template, **variables):
    return sandbox(None).from_string(template).render(**variables)


@pytest.mark.parametrize(
    "template",
    [
        FOREVER,
        "{% set turn = joined = 1 %}" + FOREVER,
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
        "{% for i in [1] * 30 recursive %}{{ loop([1] * 30) }}{% endfor %}",
    ],
)
def test_a_template_that_does_not_end_is_ended(monkeypatch, template):
    monkeypatch.setattr(render_limits, "MOST_SECONDS", 0.2)
    started = time.thread_time()
    with pytest.raises((jinja2.TemplateError, RecursionError)):
        render(template)
    assert time.thread_time() - started < 5


@pytest.mark.parametrize(
    "template",
    [
        "{{ 'a' * 1000000000 }}",
        "{{ ['a'] * 1000000000 }}",
        "{{ 'a'|center(1000000000) }}",
        "{{ 'a'.ljust(1000000000) }}",
        "{{ '%1000000000d' % 1 }}",
        "{{ '%*d' % (1000000000, 1) }}",
        "{{ '%1000000000d'|format(1) }}",
        "{{ '{:1000000000d}'.format(1) }}",
        "{{ '{:{}d}'.format(1, 1000000000) }}",
        "{% set ns = namespace(s='ab') %}{% for i in range(60) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
        "{% set ns = namespace(s=['ab']) %}{% for i in range(60) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
        LONG + "{{ s.replace('a', s) }}",
        LONG + "{{ s|replace('a', s) }}",
        LONG + "{{ ([s] * 1000)|join }}",
        LONG + "{{ s.join(['b'] * 100000) }}",
        LONG + "{% for i in range(100000) %}{{ s }}{% endfor %}",
        LONG + "{% set t %}{% for i in range(9000) %}{{ s }}{% endfor %}{% endset %}",
        "{{ ('\t' * 100000).expandtabs(100000) }}",
        "{{ ('a\n' * 100000)|indent(100000) }}",
        "{{ [1, 2]|tojson(indent=1000000000) }}",
        "{{ 9 ** (9 ** 9) }}",
        "{% set ns = namespace(x=2) %}{% for i in range(99) %}{% set ns.x = ns.x * ns.x %}{% endfor %}",
        "{{ lipsum(1000) }}",
        "{{ range(1000000000) }}",
    ],
)
def test_a_template_that_fills_the_memory_is_ended_before_it_does(template):
    tracemalloc.start()
    try:
        with pytest.raises(RENDER_ERRORS):
            render(template)
        assert tracemalloc.get_traced_memory()[1] < 300 * 2**20
    finally:
        tracemalloc.stop()


def test_many_small_values_pay_from_one_budget():
    kept = "{% set ns = namespace(l=[]) %}{% for i in range(100000) %}{% set ns.l = ns.l + [s ~ i] %}{% endfor %}"
    with pytest.raises(jinja2.TemplateError, match="texts and lists of more than 1073741824 characters or elements"):
        render(LONG + kept)


@pytest.mark.parametrize("template", ["{{ ''.__class__.__mro__ }}", "{{ cycler.__init__.__globals__ }}"])
def test_the_sandbox_shows_no_way_to_python(template):
    with pytest.raises(jinja2.TemplateError, match="unsafe"):
        render(template)


def test_what_templates_do_is_rendered_as_jinja_renders_it():
    plain = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
    variables = {"bos_token": "<s>", "messages": [{"role": "user", "content": " 안녕 "}] * 3, "n": 7}
    for template in (
        LLAMA3,
        "{{ 'a' ~ n ~ 'b' + 'c' }}{{ n * 2 + 1 }}{{ 'ab' * 2 }}{{ '%03d %s' % (n, 'x') }}{{ '{:>4}'.format(n) }}",
        "{% macro f(x) %}[{{ x }}]{% endmacro %}{{ f(n) }}{% for m in messages %}{{ loop.index0 }}{{ m.role|upper }}"
        "{% else %}none{% endfor %}{{ messages|map(attribute='content')|join(', ')|trim|replace('안', '반') }}",
        "{% for m in messages if m.role == 'system' %}{{ m }}{% else %}none{% endfor %}{{ 2 ** 3 }}{{ [1] + [2] }}",
    ):
        assert render(template, **variables) == plain.from_string(template).render(**variables)
