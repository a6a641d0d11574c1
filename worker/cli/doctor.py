"""doctor: what is wrong, and what to do."""

from __future__ import annotations

import typer

from worker.cli.common import AsJson, open_app, out, out_json
from worker.db import AWAY
from worker.doctor import Finding, as_json, exit_code
from worker.errors import ConfigError, SchemaMismatch
from worker.settings import without_password


def doctor(json: AsJson = False) -> None:
    """Look for everything that is wrong, here and in the fleet, and say what to do. Changes nothing.

    Exit code 0: all is well, 1: warnings, 2: errors.
    """
    findings = _examine()
    if json:
        out_json(as_json(findings))
    else:
        for finding in findings:
            out(f"{finding.level} {finding.what}: {finding.message}\n    {finding.advice}")
        out(f"{len(findings)} findings" if findings else "all is well")
    raise typer.Exit(exit_code(findings))


def _examine() -> list[Finding]:
    try:
        with open_app() as app:
            return app.doctor().examine()
    except ConfigError as error:
        return [Finding("error", "settings", str(error), "docs/configuration.md tells every setting.")]
    except SchemaMismatch as error:
        return [Finding("error", "schema", str(error), "Migrate, or install the release that fits.")]
    except AWAY as error:
        told = without_password(str(error).strip())
        return [Finding("error", "database", told, "Check DATABASE_URL, and that PostgreSQL runs.")]
