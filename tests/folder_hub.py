"""Replace the hub at the network boundary by a folder and the functions of `huggingface_hub` that copy to and from it."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import LocalEntryNotFoundError
from sae_lens.loading import pretrained_sae_loaders


@dataclass
class FolderHub:
    root: Path
    private: dict[str, bool] = field(default_factory=dict)
    commits: list[str] = field(default_factory=list)

    def create_repo(self, repo_id: str, private: bool = False, exist_ok: bool = False, **_: Any) -> None:
        assert exist_ok or repo_id not in self.private
        self.private.setdefault(repo_id, private)

    def repo_info(self, repo_id: str, **_: Any) -> SimpleNamespace:
        return SimpleNamespace(private=self.private[repo_id])

    def file_exists(self, repo_id: str, filename: str, **_: Any) -> bool:
        return (self.root / repo_id / filename).is_file()

    def upload_file(self, *, path_or_fileobj: Any, path_in_repo: str, repo_id: str, commit_message: str, **_: Any) -> None:
        target = self.root / repo_id / path_in_repo
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path_or_fileobj, target)
        self.commits.append(commit_message)

    def upload_folder(
        self, *, folder_path: Any, path_in_repo: str, repo_id: str, allow_patterns: list[str], commit_message: str, **_: Any
    ) -> None:
        for name in allow_patterns:
            if (Path(folder_path) / name).is_file():
                self.upload_file(
                    path_or_fileobj=Path(folder_path) / name,
                    path_in_repo=f"{path_in_repo}/{name}",
                    repo_id=repo_id,
                    commit_message=commit_message,
                )

    def download(self, repo_id: str, filename: str, **_: Any) -> str:
        path = self.root / repo_id / filename
        if not path.is_file():
            raise LocalEntryNotFoundError(f"{repo_id}/{filename}")
        return str(path)


def install(stand_in: FolderHub, monkeypatch: pytest.MonkeyPatch) -> FolderHub:
    """Put it in the place of the hub until the test ends."""
    for name in ("create_repo", "repo_info", "file_exists", "upload_file", "upload_folder"):
        function = getattr(stand_in, name)
        monkeypatch.setattr(HfApi, name, lambda _self, *args, _function=function, **kwargs: _function(*args, **kwargs))
    monkeypatch.setattr(pretrained_sae_loaders, "hf_hub_download", stand_in.download)
    return stand_in
