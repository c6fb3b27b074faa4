"""A repository of the Hub that versions are pushed to: a commit for each move of the head, a tag for each version.

`main` holds what the head's folder holds, and nothing is ever forced: tags stay, and an earlier version is a new commit.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import islice
from json import JSONDecodeError
from pathlib import Path
from typing import Any
from urllib.parse import quote

from huggingface_hub import CommitOperationDelete, HfApi, ModelInfo
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError
from huggingface_hub.utils import build_hf_headers, paginate

from ....state.errors import MergdError, Misconfigured, NotPermitted, Unavailable
from ....state.wording import shown
from .client import first_line, within
from .listing import is_public
from .sending import Addition, Digests, Progress, Sent

STEP = 60.0  # seconds that a short call may take
LONG = 6 * 3600.0  # and an upload
SILENCE = 60.0  # seconds without a byte: the Hub takes its time over large files and commits
KEPT = (".gitattributes",)  # what is the repository's own
OURS = "mergd_manifest.json"  # which every published folder has
LOOKS_BACK = 200  # commits among which ours is looked for, if its answer was lost: others make few in between
FOR_GOOD = (400, 402, 413, 422)  # what the Hub answers to what it will not take tomorrow either
OF_HUB = re.compile(r"/api/|/info/lfs/")  # in its addresses; a storage that answers 400 may only have lost its patience


@dataclass(frozen=True)
class Push:
    """One move of the head, as it is to be pushed."""

    move: int
    version: int
    folder: Path
    title: str
    mark: str  # the line of the commit's message by which it is known again
    known: str = ""  # the commit that was pushed last, if one was
    tagged: bool = False  # whether the repository held this version before
    secret: str = ""  # what of it may not be for everybody's eyes; empty if nothing is known
    base: str = ""  # the repository of the base model, which may not be for everybody's eyes either
    last: bool = True  # whether the head has not moved on since


@dataclass(frozen=True)
class Done:
    """What a push came to."""

    commit: str
    astray: str = ""  # what is wrong with the version's tag, and how to mend it


class Withheld(NotPermitted):
    """The repository is public, and the version is not to be."""


class Rejected(Misconfigured):
    """The Hub does not take the version, now or later: something about it, or about the repository, must change first."""


class Target:
    """The repository that versions are pushed to."""

    def __init__(
        self, repo: str, token: Path, stopped: Callable[[], bool], digests: Digests, *, private_too: bool = False
    ) -> None:
        """`token`: the file that holds the one that may write; `private_too`: whether everybody may see everything."""
        self.repo, self._token, self._stopped, self._private_too = repo, token, stopped, private_too
        self._digests = digests

    def push(self, push: Push, tell: Callable[[str], None], anew: Callable[[], Push | None]) -> Done:
        """Have the repository hold a version. `tell` is told how far it is; `anew` says what is to be pushed by then.

        What an earlier try has done is not done again. Raises Withheld, Rejected, NotPermitted, Misconfigured or Unavailable.
        """
        token = read_token(self._token)
        with _answering(self.repo, token):
            api = HfApi(token=token)
            found = self._found(api)
            self._check_eyes(push, found)
            commit = self._made_before(api, push, found)
            if commit is None:
                self._check_ours(push, found)
                commit = self._commit(api, push, found, tell, anew)
            astray = "" if push.tagged else self._tag(api, f"v{push.version}", commit)
        return Done(commit, astray)

    def _ask(self, call: Callable[..., Any], *arguments: Any, seconds: float = STEP, **more: Any) -> Any:
        with within(seconds, self._stopped, SILENCE):
            return call(*arguments, **more)

    def _found(self, api: HfApi) -> ModelInfo:
        """Return what is there; a repository that is not is made, for its owner's eyes alone."""
        try:
            found: ModelInfo = self._ask(api.model_info, self.repo)
        except RepositoryNotFoundError:
            self._ask(api.create_repo, self.repo, private=True, exist_ok=True)
            found = self._ask(api.model_info, self.repo)
        return found

    def _check_eyes(self, push: Push, found: ModelInfo) -> None:
        """Raise Withheld where everybody would see what not everybody may."""
        if found.private or self._private_too:
            return
        secret = push.secret or self._secret_base(push.base)
        if secret:
            raise Withheld(
                f"v{push.version} is withheld: {self.repo} is public, and {secret}",
                "make the repository private; or set hub.publish_private_sources, if everybody may have it",
            )

    def _check_ours(self, push: Push, found: ModelInfo) -> None:
        """Raise Misconfigured where a first push would take away what somebody else has put there."""
        there = {file.rfilename for file in found.siblings or ()}
        if not push.known and there - {*KEPT, "README.md"} and OURS not in there:
            raise Misconfigured(
                f"{self.repo} holds something else than a merged model of mergd's",
                "let hub.publish_to name a new repository",
            )

    def _secret_base(self, base: str) -> str:
        """Ask, as anybody would, for the base model; returns what is secret about it."""
        try:
            public = is_public(self._ask(HfApi(token=False).model_info, base, expand=["private", "gated"]))
        except (RepositoryNotFoundError, GatedRepoError):
            public = False
        return "" if public else f"the base model {base} is private or gated"

    def _made_before(self, api: HfApi, push: Push, found: ModelInfo) -> str | None:
        """Return the commit that an earlier try has made, if its answer, or we, got lost."""
        if found.sha == push.known:
            return None
        made: str | None = self._ask(self._marked, api, push)
        return made

    def _marked(self, api: HfApi, push: Push) -> str | None:
        """Return the commit with a push's mark among the newest; the client's own listing would read all there ever were."""
        url = f"{api.endpoint}/api/models/{self.repo}/commits/main"
        for commit in islice(paginate(url, params={}, headers=build_hf_headers(token=api.token)), LOOKS_BACK):
            if commit["id"] == push.known:
                return None
            if push.mark in commit["message"].splitlines():
                return str(commit["id"])
        return None

    def _commit(
        self, api: HfApi, push: Push, found: ModelInfo, tell: Callable[[str], None], anew: Callable[[], Push | None]
    ) -> str:
        """Make the commit. Large files go before it, one by one, so that it is small, and a later try finds them there."""
        there = {file.rfilename for file in found.siblings or ()}
        with ExitStack() as stack:
            files = [stack.enter_context(Sent(path, self._stopped, self._digests)) for path in _files(push.folder)]
            names = {file.named(push.folder) for file in files}
            gone = [CommitOperationDelete(name, is_folder=False) for name in sorted(there - names) if name not in KEPT]
            additions = [Addition(file.named(push.folder), file) for file in files]
            progress = Progress(files, tell)
            for addition in additions:  # more at once would go in threads that know no bounds
                self._ask(api.preupload_lfs_files, self.repo, [addition], gitignore_content="", seconds=LONG)
                progress.next_file()
            if (current := anew()) is None:  # that may have taken hours
                raise Unavailable(f"v{push.version} is not to be pushed any more", "the log says why")
            self._check_eyes(current, self._ask(api.model_info, self.repo))
            made = self._ask(
                api.create_commit, self.repo, [*additions, *gone], commit_message=push.title,
                commit_description=push.mark, parent_commit=found.sha, seconds=LONG,
            )  # fmt: skip
        return str(made.oid)

    def _tag(self, api: HfApi, name: str, commit: str) -> str:
        """Tag a commit; a tag that is there stays where it is. Returns what is wrong with it, if it has other content."""
        try:
            self._ask(api.create_tag, self.repo, tag=name, revision=commit)
        except HfHubHTTPError as error:
            if error.response.status_code != 409:
                raise
            refs = self._ask(api.list_repo_refs, self.repo)
            there = next((ref.target_commit for ref in refs.tags if ref.name == name), None)
            if there is None:
                raise
            if there == commit or self._content(api, there) == self._content(api, commit):
                return ""
            mends = (
                f"hf repos tag delete {self.repo} {name} -y; hf repos tag create {self.repo} {name} --revision {commit}"
            )
            return f"the tag {name} of {self.repo} leads to other content, in {there[:12]}, and stays there; to move it: {mends}"
        return ""

    def _content(self, api: HfApi, commit: str) -> dict[str, str | None]:
        """Return what the files of a commit hold, as the Hub names contents."""
        found = self._ask(api.model_info, self.repo, revision=commit, files_metadata=True)
        return {file.rfilename: file.blob_id for file in found.siblings or () if file.rfilename not in KEPT}


def read_token(path: Path) -> str:
    """Return the token in a file. Raises Misconfigured or NotPermitted."""
    try:
        token = path.read_text().strip()
    except PermissionError:
        raise NotPermitted(f"this user may not read {path}", "let its owner be the daemon's user") from None
    except (OSError, UnicodeDecodeError):
        token = ""
    if not re.fullmatch(r"[!-~]+", token):  # anything else could not be sent, and would be shown by whatever says so
        raise Misconfigured(
            f"hub.write_token: there is no token in {path}, or more than one", "put one there that may write"
        )
    return token


def _files(folder: Path) -> list[Path]:
    """Return the files of a published folder. Raises Unavailable if it is not there any more, or not all of it."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    if not files:
        raise Unavailable(f"{folder} is gone", "the head has moved on")
    return files


# ------------------------------------------------------------------------------------------------------ what went wrong


@contextmanager
def _answering(repo: str, token: str) -> Iterator[None]:
    """Say by who can mend it what the Hub, or the way to it, answers; never with the token, nor with a signed URL."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 - its HTTP library, another one in each major version, raises through it
        cause = _cause(error)
        if isinstance(cause, MergdError):
            raise cause from None
        text = _text(cause, token)
        if isinstance(cause, HfHubHTTPError) and cause.response.status_code in (401, 403):
            raise NotPermitted(f"{repo}: {text}", "let hub.write_token hold a token that may write there") from None
        if _is_for_good(cause):
            hint = "mend that, then reload the daemon; it is tried again when the head moves, and once a day"
            raise Rejected(f"{repo} does not take it: {text}", hint) from None
        raise Unavailable(f"{repo}: {text}", "it is pushed later") from None


def _is_for_good(error: Exception) -> bool:
    """Whether the same request would always fail: by the Hub's answer, or because the client will not even send it."""
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code in FOR_GOOD and bool(OF_HUB.search(str(error.response.url.path)))
    return isinstance(error, ValueError) and not isinstance(
        error, JSONDecodeError | UnicodeError
    )  # an answer cut short


def _text(error: Exception, token: str) -> str:
    """Return what an error says, in a line: the Hub's own words if it has any."""
    if isinstance(error, ValueError):  # the client's own, with what matters in its last line, after a digest
        error = ValueError(re.sub(r"\b([0-9a-f]{12})[0-9a-f]{28,}", r"\1", str(error).strip().rpartition("\n")[2]))
    said = isinstance(error, HfHubHTTPError) and error.server_message
    text = f"{error.response.status_code}, {said}" if isinstance(error, HfHubHTTPError) and said else first_line(error)
    for form in (token, quote(token), quote(token, safe=""), repr(token)[1:-1]):
        text = text.replace(form, "(token)")
    return shown(re.sub(r"\?\S+", "?...", text))


def _cause(error: Exception) -> Exception:
    """Return what was behind an error that was raised for another one, if that says who can mend it."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, MergdError | HfHubHTTPError):
            return cause
        cause = cause.__cause__
    return error
