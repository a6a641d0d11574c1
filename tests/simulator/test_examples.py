"""Every example the documentation shows for the known types is accepted (md/dictionaries/, md/workbook/)."""

import json
import re
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2].parent / "shared" / "data" / "moysklad-examples.json"
KNOWN = re.compile(
    r"/entity/(product|productfolder|uom|country|currency)(/delete|/metadata|/[0-9a-f-]{35,36})?/?(\?.*)?"
    r"|/context/companysettings(/pricetype.*)?"
)
HREF = re.compile(r"/(?:entity|companysettings)/(\w+)/([0-9a-f-]{35,36})$")


def examples():
    """File, position and example of everything that can be replayed.

    The chapter on attributes is left out: its bodies are of API 1.1 (a price type by name, a bare price).
    """
    if not EXAMPLES.exists():
        return []
    return [
        pytest.param(file, index, one, id=f"{Path(file).stem}-{index}")
        for file, found in json.loads(EXAMPLES.read_text()).items()
        for index, one in enumerate(found)
        if KNOWN.fullmatch(one["path"]) and "attributes_crud" not in file
    ]


def references(value):
    """Type and id of everything a body refers to."""
    if isinstance(value, list):
        return {pair for one in value for pair in references(one)}
    if not isinstance(value, dict):
        return set()
    href = str(value.get("href", "")).split("?")[0]
    own = set(HREF.findall(href)) if "/metadata" not in href else set()
    return own.union(*(references(one) for one in value.values()))


def prepare(client, example):
    """Create what the example takes for granted."""
    wanted = references(example["body"]) | set(HREF.findall(example["path"].split("?")[0]))
    order = ("currency", "pricetype", "uom", "country", "productfolder")
    for kind, key in sorted(wanted, key=lambda one: (one[0] not in order, one)):
        client.sim.control("POST", "/entities", account=client.account, type=kind, entities=[{"id": key}])


@pytest.mark.parametrize(("file", "index", "example"), examples())
def test_documented_example(main, file, index, example):
    """It is answered with 200, and the answer has every field the documented answer has."""
    prepare(main, example)

    answer = main.ask(example["method"], example["path"], example["body"])

    assert answer.status == 200, answer.body
    documented = example["response"]
    if example["method"] in ("POST", "PUT") and isinstance(documented, dict):
        assert documented.keys() - answer.body.keys() <= OPTIONAL


# Shown in answers to requests that did not set them: the documented accounts had them from before, number and
# barcode goods by themselves, or name `minimumStock`, which is answered "on request" only.
OPTIONAL = {"vat", "effectiveVat", "effectiveVatEnabled", "attributes", "supplier"} | {
    *("code", "barcodes", "minimumBalance", "minimumStock")
}


def test_there_are_examples():
    """A wrong path must not pass for success; where the documentation is not at hand this is skipped."""
    if not EXAMPLES.exists():
        pytest.skip("the vendor's examples do not lie beside the repository")

    assert len(examples()) > 60
