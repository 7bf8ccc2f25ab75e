"""The options that every command has, before or after its name, and what they amount to."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import click
from click.core import ParameterSource

import pharmabackup as pb
from pharmabackup.cli.credentials import credential
from pharmabackup.cli.output import Output

SECRET_OPTION = re.compile(r"secret|passw|passphrase|token|credential|account_?key|\bsas\b", re.IGNORECASE)
SECRET_IN_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.:-]*://[^/@]*:[^/@]+@")
NAMED = re.compile(r"([^=/\\]+)=(.+)", re.DOTALL)
CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


@dataclass(slots=True)
class Settings:
    """What was said about where, as whom and how. Filled while the command line is parsed."""

    output: Output
    repository: str | None = None
    storage_option: dict[str, object] = field(default_factory=dict)
    credential: str | None = None
    state: str | None = None
    upload_limit: int | None = None
    expected: str | None = None
    actor: str | None = None
    reason: str | None = None
    quiet: bool = False
    verbose: int = 0
    as_json: bool = False
    as_events: bool = False
    judging: bool = False
    begun: bool = False

    def begin(self) -> None:
        """The command line is parsed: from here on, output is what it asked for. UsageError."""
        if self.as_json and self.as_events:
            raise click.UsageError("--json prints one document and --events prints lines: choose one of them.")
        self.output.form = "events" if self.as_events else "json" if self.as_json else "text"
        self.output.quiet, self.output.verbose = self.quiet, self.verbose
        self.begun = True

    def url(self) -> str:
        given = self.repository
        url = os.environ.get("PHARMABACKUP_REPOSITORY") if given is None else given
        if not url:
            raise click.UsageError("Say which repository: -r URL, or set PHARMABACKUP_REPOSITORY.")
        return without_secret(url)

    def storage_options(self) -> Mapping[str, object] | None:
        return self.storage_option or None

    def who(self, *, new: bool = False) -> pb.Credential:
        return credential(self.credential, self.output.say, new=new)

    def open(self) -> pb.Repository:
        """The repository that every command but `init` begins with."""
        url = self.url()
        return self.open_at(url, self.who())

    def open_at(self, url: str, who: pb.Credential) -> pb.Repository:
        """That repository, or a replica of it."""
        return pb.Repository.open(
            without_secret(url),
            who,
            storage_options=self.storage_options(),
            state_dir=self.state,
            actor=self.actor,
            reason=self.reason,
            upload_limit=self.upload_limit,
            repository=self.expected,
        )

    def open_other(self, url: str, who: pb.Credential) -> pb.Repository:
        """Another place, whose storage takes its options from its own environment."""
        return pb.Repository.open(
            without_secret(url),
            who,
            state_dir=self.state,
            actor=self.actor,
            reason=self.reason,
            upload_limit=self.upload_limit,
            repository=self.expected,
        )


def without_secret(url: str) -> str:
    """The URL, if nobody can read a secret off it. InvalidInput."""
    if SECRET_IN_URL.match(url):
        raise pb.InvalidInput(
            "The repository's URL holds a password, and every user of this machine can see it there.",
            remedy="Leave it out of the URL; storage back ends read their own environment.",
        )
    return url


# ------------------------------------------------------------ the options themselves


def _take(context: click.Context, parameter: click.Parameter, value: object) -> None:
    """Keep what was said; what was not said leaves alone what was said on the command's other side."""
    name = str(parameter.name)
    if context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
        settings: Settings = context.obj
        if name == "storage_option":
            assert isinstance(value, tuple)
            settings.storage_option.update(map(storage_option, value))
        else:
            setattr(settings, name, value)


def storage_option(text: str) -> tuple[str, object]:
    """K=V. A secret is refused and not repeated; true, false and whole numbers are what they look like."""
    key, sign, value = text.partition("=")
    if not sign or not key:
        raise click.BadParameter("give it as K=V.", param_hint="--storage-option")
    if SECRET_OPTION.search(key):
        raise click.BadParameter(
            f"{key} is a secret, and every user of this machine can see it here. "
            "Storage back ends read secrets from their own environment.",
            param_hint="--storage-option",
        )
    if value.lower() in ("true", "false"):
        return key, value.lower() == "true"
    return key, int(value) if re.fullmatch(r"-?\d{1,18}", value) else value


def common(own: Sequence[click.Parameter] = ()) -> list[click.Parameter]:
    """Every command's options, but for those that mean something of their own in this one."""

    def option(*names: str, **facts: object) -> click.Option:
        return click.Option(names, expose_value=False, callback=_take, **facts)  # type: ignore[arg-type]

    options: list[click.Parameter] = [
        option("-r", "repository", metavar="URL", help="The repository. [env: PHARMABACKUP_REPOSITORY]"),
        option("--storage-option", metavar="K=V", multiple=True, help="For the storage, unchanged. No secrets."),
        option(
            "--credential",
            metavar="REF",
            help="ask, env:NAME, file:PATH or vault:SERVICE/NAME. [env: PHARMABACKUP_CREDENTIAL]",
        ),
        option("--id", "expected", metavar="ID", help="Its id, as on the recovery kit: no other is opened."),
        option("--upload-limit", metavar="RATE", type=Rate(), help="Such as 500kbit/s or 2Mbit/s; no limit."),
        option("--state", metavar="DIR", help="Where this machine keeps its caches. [env: PHARMABACKUP_STATE]"),
        option("--actor", metavar="NAME", help="Who you are, for the audit log."),
        option("--reason", metavar="TEXT", help="Why, for the audit log."),
        option("-q", "--quiet", is_flag=True, help="Errors only."),
        option("-v", "--verbose", count=True, help="The log too."),
        option("--json", "as_json", is_flag=True, help="One JSON document on stdout, and nothing else there."),
        option("--events", "as_events", is_flag=True, help="One event a line, as JSON, and then the result."),
    ]
    taken = {item.name for item in own}
    return [item for item in options if item.name not in taken]


class Verb(click.Command):
    """A command that takes the common options too."""

    def __init__(self, *args: object, **facts: object) -> None:
        super().__init__(*args, **facts)  # type: ignore[arg-type]
        self._own = len(self.params)
        self.params += common(self.params)

    def format_options(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        own, shared = self.params[: self._own], self.params[self._own :]
        for title, parameters in (("Options", own), ("Options of all commands", shared)):
            records = [record for item in parameters if (record := item.get_help_record(context)) is not None]
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)

    def invoke(self, context: click.Context) -> object:
        context.obj.begin()
        return super().invoke(context)


class Verbs(click.Group):
    """All commands; the common options may stand before a command's name."""

    command_class = Verb

    def __init__(self, *args: object, **facts: object) -> None:
        super().__init__(*args, **facts)  # type: ignore[arg-type]
        self.params += common(self.params)


# ------------------------------------------------------------ values


class Time(click.ParamType[datetime]):
    """ISO 8601; without an offset it is this machine's local time."""

    name = "time"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        if isinstance(value, datetime):
            return value
        found = moment(str(value))
        if found is None:
            self.fail(
                f"{value!r} is no time. Write it like 2027-03-09T17:00 or 2027-03-09T17:00:00+00:00.", param, ctx
            )
        return found


def moment(text: str) -> datetime | None:
    """An aware time, if the text is one."""
    try:
        return datetime.fromisoformat(text).astimezone()
    except (ValueError, OverflowError, OSError):
        return None


class Share(click.ParamType[float]):
    """A share such as 5%; only with its sign, since a bare 1 could be either of two things."""

    name = "share"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        found = re.fullmatch(r"(\d{1,3}(?:\.\d+)?)\s*%", str(value).strip())
        if found is None or not 0 <= float(found[1]) <= 100:
            self.fail(f"{value!r} is no share. Write it like 5% or 100%.", param, ctx)
        return float(found[1]) / 100


class Rate(click.ParamType[int]):
    """Bits a second, as lines are sold: 500kbit/s, 2Mbit/s. Bytes a second for the library."""

    name = "rate"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        found = re.fullmatch(r"(\d{1,6}(?:\.\d{1,3})?)\s*([kMG])bit/s", str(value).strip())
        rate = int(float(found[1]) * {"k": 1e3, "M": 1e6, "G": 1e9}[found[2]] / 8) if found else 0
        if not found:
            self.fail(f"{value!r} is no rate. Write it like 500kbit/s or 2Mbit/s.", param, ctx)
        if rate < 1000:  # what the library refuses, in bytes
            self.fail(f"{value!r} is too little. Give 8kbit/s or more.", param, ctx)
        return rate


class Duration(click.ParamType[timedelta]):
    """A whole number with its unit: 15min, 2h, 35d."""

    name = "duration"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> timedelta:
        if isinstance(value, timedelta):
            return value
        found = re.fullmatch(r"(\d{1,6})(min|h|d)", str(value).strip())
        if found is None:
            self.fail(f"{value!r} is no duration. Write it like 15min, 2h or 35d.", param, ctx)
        return (
            int(found[1]) * {"min": timedelta(minutes=1), "h": timedelta(hours=1), "d": timedelta(days=1)}[found[2]]
        )


def named(text: str) -> tuple[str | None, str]:
    """[NAME=]PATH. A path that has a = before its first / is written with ./ before it."""
    if not text or text.startswith("="):
        raise click.BadParameter("give it as PATH or NAME=PATH.")
    found = NAMED.fullmatch(text)
    return (found[1], found[2]) if found else (None, text)


def pairs(texts: Sequence[str], hint: str, convert: Callable[[str], object] = str) -> dict[str, object]:
    """NAME=VALUE for each; each name once."""
    found: dict[str, object] = {}
    for text in texts:
        name, sign, value = text.partition("=")
        if not sign or not name or not value:
            raise click.BadParameter("give it as NAME=VALUE.", param_hint=hint)
        if name in found:
            raise click.BadParameter(f"{name} is there twice.", param_hint=hint)
        try:
            found[name] = convert(value)
        except ValueError:
            raise click.BadParameter(f"{value!r} is no number.", param_hint=hint) from None
    return found
