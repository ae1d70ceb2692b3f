"""Tests of bloodjax/report/html.py."""

import base64
import re

import jinja2
import pytest

from bloodjax.report import html


def test_render_escapes_what_it_is_given(monkeypatch):
    child = '{% extends "base.html" %}{% block title %}{{ name }}{% endblock %}'
    monkeypatch.setattr(
        html._ENVIRONMENT,
        "loader",
        jinja2.ChoiceLoader([jinja2.DictLoader({"child.html": child}), html._ENVIRONMENT.loader]),
    )

    page = html.render("child.html", name="<script>alert(1)</script> & co")

    assert "<script>" not in page
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt; &amp; co") == 2, "in title and heading"


def test_render_refuses_a_missing_value(monkeypatch):
    monkeypatch.setattr(html._ENVIRONMENT, "loader", jinja2.DictLoader({"a.html": "{{ absent }}"}))
    with pytest.raises(jinja2.UndefinedError, match="absent"):
        html.render("a.html")


def test_base_page_links_to_nothing_outside_itself():
    page = html.render("base.html")
    assert page.startswith("<!DOCTYPE html>")
    assert not re.search(r"https?:|<link|<script|@import|url\(", page)


def test_data_uri_holds_the_bytes():
    png = b"\x89PNG\r\n\x1a\n" + bytes(range(256))
    kind, _, encoded = html.data_uri(png).partition(",")
    assert kind == "data:image/png;base64"
    assert base64.b64decode(encoded) == png
