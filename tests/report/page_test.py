"""Tests of bloodjax/report/page.py."""

import base64
import re

import jinja2
import pytest

from bloodjax.report import page


def test_render_escapes_what_it_is_given(monkeypatch):
    child = '{% extends "base.html" %}{% block title %}{{ name }}{% endblock %}'
    monkeypatch.setattr(
        page._ENVIRONMENT,
        "loader",
        jinja2.ChoiceLoader([jinja2.DictLoader({"child.html": child}), page._ENVIRONMENT.loader]),
    )

    html = page.render("child.html", name="<script>alert(1)</script> & co")

    assert "<script>" not in html
    assert html.count("&lt;script&gt;alert(1)&lt;/script&gt; &amp; co") == 2, "in title and heading"


def test_render_refuses_a_missing_value(monkeypatch):
    monkeypatch.setattr(page._ENVIRONMENT, "loader", jinja2.DictLoader({"a.html": "{{ absent }}"}))
    with pytest.raises(jinja2.UndefinedError, match="absent"):
        page.render("a.html")


def test_base_page_links_to_nothing_outside_itself():
    html = page.render("base.html")
    assert html.startswith("<!DOCTYPE html>")
    assert not re.search(r"https?:|<link|<script|@import|url\(", html)


def test_data_uri_holds_the_bytes():
    png = b"\x89PNG\r\n\x1a\n" + bytes(range(256))
    kind, _, encoded = page.data_uri(png).partition(",")
    assert kind == "data:image/png;base64"
    assert base64.b64decode(encoded) == png
