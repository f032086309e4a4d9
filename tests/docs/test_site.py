"""The documentation site: built strictly, complete, no request to another host, searched in a real browser."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import urlsplit

import pytest
from markdown_it import MarkdownIt
from selenium import webdriver
from selenium.common.exceptions import WebDriverException
from selenium.webdriver.common.by import By
from selenium.webdriver.support.wait import WebDriverWait

import streamdetect
from paths import ROOT
from tools import environment, find, need

SOURCES = {path.name: f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")} | {
    "index.md": "README.md",
    "examples.md": "examples/README.md",
    "contributing.md": "CONTRIBUTING.md",
    "security.md": "SECURITY.md",
    "changelog.md": "CHANGELOG.md",
}
"""Every page of the site, and the file of the repository that it shows."""
REPOSITORY = "https://github.com/streamdetect/streamdetect"
LOADING = {
    "script": ("src",),
    "img": ("src", "srcset"),
    "link": ("href",),
    "iframe": ("src",),
    "source": ("src",),
}
BLOCKS = {"h1", "h2", "h3", "h4", "ul", "ol", "li", "pre", "blockquote", "table", "td", "hr"}


def build(root: Path, site: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--site-dir", str(site)],
        cwd=root,
        env=environment() | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site."""
    folder = tmp_path_factory.mktemp("site")
    done = build(ROOT, folder)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    return folder


class Tags(HTMLParser):
    """Tags and attributes of a page, or of its article alone."""

    def __init__(self, text: str, *, article: bool = False) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str]]] = []
        self._inside = not article
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._inside |= tag == "article"
        if self._inside:
            self.found.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        self._inside &= tag != "article"


def shown(site: Path, page: str) -> Path:
    """The built file of a page."""
    return site / page.removesuffix(".md").replace("index", "") / "index.html"


def external(text: str) -> list[str]:
    """What a page would load from another host."""
    loaded = [
        attributes.get(name, "")
        for tag, attributes in Tags(text).found
        if attributes.get("rel") != "canonical"
        for name in LOADING.get(tag, ())
    ]
    return [url for url in loaded if re.match(r"\s*(?:[a-z]+:)?//", url)]


# -- the build


def test_every_page_is_built(site: Path) -> None:
    """Each file in docs/ and each page from outside it is a page of the site."""
    assert {page for page in SOURCES if not shown(site, page).exists()} == set()


def test_a_broken_link_fails_the_build(tmp_path: Path) -> None:
    """A missing page, file of the repository or heading, and a page that the navigation lacks, are each reported."""
    root = tmp_path / "repository"
    shutil.copytree(ROOT / "docs", root / "docs")
    for name in ("mkdocs.yml", "scripts/mkdocs_hooks.py", *(SOURCES[page] for page in SOURCES)):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, root / name)
    for name in ("streamdetect", "configs", "deploy", "benchmarks"):
        (root / name).symlink_to(ROOT / name)
    for example in (ROOT / "examples").glob("*.py"):
        shutil.copy(example, root / "examples")
    broken = "[a](no-page.md) [b](../deploy/no-file.yaml) [c](reference.md#no-heading)\n"
    (root / "docs" / "extra.md").write_text(f"# Extra\n\n{broken}", encoding="utf-8")
    done = build(root, tmp_path / "site")
    assert done.returncode != 0
    assert 'not included in the "nav" configuration:\n  - extra.md' in done.stderr
    told = [line for line in done.stderr.splitlines() if line.startswith("WARNING") and "'extra.md'" in line]
    for name in ("no-page.md", "no-file.yaml", "no-heading"):
        assert any(name in line for line in told), done.stderr
    assert len(told) == 3


def test_links_to_the_repository_lead_to_files(site: Path) -> None:
    """A link to a file that is no page goes to the repository."""
    linked = {
        attributes["href"].partition("#")[0].removeprefix(f"{REPOSITORY}/")
        for page in SOURCES
        for tag, attributes in Tags(shown(site, page).read_text(encoding="utf-8")).found
        if tag == "a" and attributes.get("href", "").startswith(f"{REPOSITORY}/")
    }
    assert "blob/main/deploy/prometheus/rules.yaml" in linked
    assert "tree/main/configs" in linked
    for target in linked:
        kind, branch, path = target.split("/", 2)
        assert branch == "main"
        assert (ROOT / path).is_dir() if kind == "tree" else (ROOT / path).is_file(), target


def test_the_repository_is_the_one_of_the_package(site: Path) -> None:
    """mkdocs.yml and pyproject.toml name the same repository."""
    del site
    settings = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert f"\nrepo_url: {REPOSITORY}\n" in settings
    assert f'Repository = "{REPOSITORY}"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")


@pytest.mark.parametrize("page", sorted(SOURCES.keys() - {"api.md"}))
def test_a_page_reads_as_in_the_repository(site: Path, page: str) -> None:
    """The site's Markdown finds the same headings, lists, tables and code blocks as CommonMark.

    In a list, indent what belongs to an item by four spaces, and put an empty line between items if one holds several
    paragraphs.
    """
    text = (ROOT / SOURCES[page]).read_text(encoding="utf-8")
    plain = Tags(MarkdownIt("commonmark").enable("table").render(text))
    here = Tags(shown(site, page).read_text(encoding="utf-8"), article=True)
    expected, found = (Counter(tag for tag, _ in tags.found if tag in BLOCKS) for tags in (plain, here))
    assert found == expected


def test_the_api_page_shows_every_public_name(site: Path) -> None:
    """Each name of `__all__` has its entry."""
    text = (site / "api" / "index.html").read_text(encoding="utf-8")
    ids = {attributes.get("id") for _, attributes in Tags(text).found}
    assert {f"streamdetect.{name}" for name in streamdetect.__all__ if name != "__version__"} - ids == set()
    assert {"streamdetect.detect.PartitionProcessor", "streamdetect.errors.ConfigError"} <= ids
    assert "streamdetect.testing.MemorySource" in ids


# -- nothing from other hosts


def test_no_page_loads_from_another_host(site: Path) -> None:
    """Neither scripts, styles, fonts and images of a page, nor what a style sheet names."""
    pages = list(site.rglob("*.html"))
    assert len(pages) > len(SOURCES)
    assert [url for page in pages for url in external(page.read_text(encoding="utf-8"))] == []
    for style in site.rglob("*.css"):
        named = re.findall(r"(?:url\(|@import\s*)[\"']?([^\"')]+)", style.read_text(encoding="utf-8"))
        assert [url for url in named if re.match(r"(?:[a-z]+:)?//", url) and "sourceMapping" not in url] == []


def test_a_load_from_another_host_would_be_found() -> None:
    """Each way in turn, and links of the text are none."""
    assert external('<a href="https://beacon.test/"><script src="a.js"></script><img src="/b.png">') == []
    for tag in (
        'script src="https://beacon.test/',
        'img src="//beacon.test/',
        'link href="http://beacon.test/',
    ):
        assert len(external(f'<{tag}">')) == 1


# -- a real browser


class Quiet(SimpleHTTPRequestHandler):
    """Serves files and logs nothing."""

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the signature of the base class
        """Nothing to say."""


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """A folder over HTTP, at the URL that is given."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def browser(profile: Path) -> Iterator[webdriver.Chrome]:
    """Headless Chromium that resolves no name, and logs its requests and its console."""
    need("chromium", "chromedriver")
    options = webdriver.ChromeOptions()
    options.binary_location = str(find("chromium"))
    for argument in (
        *("--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--window-size=1300,900"),
        *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
        *(f"--user-data-dir={profile}", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"),
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(executable_path=str(find("chromedriver"))))
    try:
        yield driver
    finally:
        driver.quit()


def requested(driver: webdriver.Chrome) -> set[str]:
    """The hosts of all requests of the page so far; those of the search worker are not among them."""
    messages = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]  # type: ignore[no-untyped-call]
    urls = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    return {urlsplit(url).netloc for url in urls if url.startswith("http")}


def until(driver: webdriver.Chrome, done: Callable[[], object]) -> None:
    """Wait until `done` returns a true value; while results are being replaced it may raise."""
    WebDriverWait(driver, 60, ignored_exceptions=[WebDriverException]).until(lambda _: done())


def search(driver: webdriver.Chrome, words: str) -> None:
    """Type into the search field."""
    driver.find_element(By.CSS_SELECTOR, "[data-md-component=search-query]").send_keys(words)


def headline(driver: webdriver.Chrome) -> str:
    """The line above the results."""
    return driver.find_element(By.CSS_SELECTOR, ".md-search-result__meta").text


def results(driver: webdriver.Chrome) -> set[str]:
    """The paths of the pages that are found."""
    links = driver.find_elements(By.CSS_SELECTOR, ".md-search-result__link")
    return {urlsplit(str(link.get_attribute("href"))).path for link in links}


def follow(driver: webdriver.Chrome, part: str) -> bool:
    """Click on the first result whose address has this part."""
    driver.find_element(By.CSS_SELECTOR, f".md-search-result__link[href*='{part}']").click()
    return True


def test_search_in_a_real_browser(site: Path, tmp_path: Path) -> None:
    """A word of one page finds it, a word of no page finds nothing; no request leaves the site."""
    with served(site) as url, browser(tmp_path / "profile") as driver:
        driver.get(url)
        search(driver, "zymurgyless")
        until(driver, lambda: headline(driver) == "No matching documents" and not results(driver))
        driver.get(url)
        search(driver, "max_future_skew")
        until(driver, lambda: {"/semantics/", "/reference/"} <= results(driver))
        until(driver, partial(follow, driver, "h=max_future_skew"))
        until(driver, lambda: driver.find_element(By.CSS_SELECTOR, "article mark").text == "max_future_skew")
        assert requested(driver) == {urlsplit(url).netloc}
        console = driver.get_log("browser")  # type: ignore[no-untyped-call]
        assert [entry for entry in console if entry["level"] == "SEVERE"] == []


def test_the_browser_would_have_requested(site: Path, tmp_path: Path) -> None:
    """A planted image of another host is among the requests."""
    text = (site / "index.html").read_text(encoding="utf-8")
    planted = text.replace("<article", '<img src="http://beacon.test/x.png"><article', 1)
    (tmp_path / "index.html").write_text(planted, encoding="utf-8")
    with served(tmp_path) as url, browser(tmp_path / "profile") as driver:
        driver.get(url)
        assert "beacon.test" in requested(driver)
