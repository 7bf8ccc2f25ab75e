"""Proposals of every verb: they are about one repository, and they travel."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import pytest

import pharmabackup as pb
from pharmabackup.format.wire import Kind
from tests.verbs.ailing import Ward
from tests.verbs.site import PASSPHRASE, Site, Time, forget_all_but, stored

PROPOSE: dict[str, Callable[[pb.Repository], pb.Proposal]] = {
    "forget": lambda repo: repo.propose_forget({"*": pb.Keep(last=1)}),
    "forget what is named": lambda repo: repo.propose_forget(snapshots=[repo.snapshots()[-1]]),
    "prune": lambda repo: repo.propose_prune(),
    "repair": lambda repo: repo.propose_repair(),
    "reseal": lambda repo: repo.propose_reseal(),
}


def _with_something_to_do(verb: str, repo: pb.Repository, site: Site, time: Time) -> pb.Proposal:
    if verb == "prune":
        forget_all_but(repo, 1, time)
    elif verb == "repair":
        repo._unlocked.storage.delete(stored(repo._unlocked.storage, "index")[:1])
    elif verb == "reseal":
        repo.rotate(reason="a laptop was lost")
    proposal = PROPOSE[verb](repo)
    assert proposal.steps or proposal.snapshots
    return proposal


@pytest.mark.parametrize("verb", PROPOSE)
def test_what_another_repository_proposed_is_refused(
    tmp_path: Path, repo: pb.Repository, site: Site, time: Time, verb: str
) -> None:
    proposal = _with_something_to_do(verb, repo, site, time)
    assert proposal.repository == proposal.to_dict()["repository"] == repo.id
    with pb.Repository.create(tmp_path / "other", PASSPHRASE) as other:
        other.backup([pb.Files(site.root)])
        before = stored(other._unlocked.storage, "")
        with pytest.raises(pb.Conflict, match="another repository") as caught:
            other.apply(proposal)
        assert caught.value.kind == "proposal-stale"
        assert stored(other._unlocked.storage, "") == before


@pytest.mark.parametrize("verb", PROPOSE)
def test_a_proposal_and_its_report_travel(repo: pb.Repository, site: Site, time: Time, verb: str) -> None:
    """Another process shows it to a person, and sends it back."""
    proposal = _with_something_to_do(verb, repo, site, time)
    data = pickle.dumps(proposal)
    for key in (repo._unlocked.naming_key, *(item.key for item in repo._unlocked.keyring.readers)):
        assert key not in data
    again = pickle.loads(data)
    assert (str(again), repr(again), again.to_dict()) == (str(proposal), repr(proposal), proposal.to_dict())
    assert again.wish == proposal.wish
    report = repo.apply(again)
    assert pickle.loads(pickle.dumps(report)) == report
    left = PROPOSE[verb](repo)
    assert (left.snapshots, left.steps) == ((), ()), "it was done"


def test_reports_of_all_other_verbs_travel(tmp_path: Path, repo: pb.Repository, site: Site) -> None:
    with pb.Repository.create(tmp_path / "there", PASSPHRASE, replica_of=repo) as there:
        for report in (
            repo.backup([pb.Files(site.root)]),
            repo.restore(tmp_path / "out"),
            repo.check(read_data=1.0),
            repo.copy(there),
        ):
            again = pickle.loads(pickle.dumps(report))
            assert (str(again), again.to_dict()) == (str(report), report.to_dict())


@pytest.mark.parametrize("given", ["a replica", "a source", "both"])
def test_a_repair_leaves_behind_what_cannot_travel(ward: Ward, replica: pb.Repository, given: str) -> None:
    """A replica is open and holds keys; a source may hold the password of a database."""
    name = ward.pack_of(Kind.DATA_BLOCK)
    ward.flip(name, ward.regions(name)["data block"])
    proposal = ward.repo.propose_repair(
        replicas=[replica] if given != "a source" else [],
        sources=ward.sources() if given != "a replica" else [],
    )
    assert proposal.steps
    again = pickle.loads(pickle.dumps(pickle.loads(pickle.dumps(proposal))))
    assert (str(again), again.to_dict()) == (str(proposal), proposal.to_dict())
    before = ward.names("")
    with pytest.raises(pb.Conflict, match=r"lost the replicas and sources .* Propose the repair again") as caught:
        ward.repo.apply(again)
    assert caught.value.kind == "proposal-stale"
    assert ward.names("") == before
    ward.repo.apply(proposal)  # here it has them
    assert not ward.repo.propose_repair(replicas=[replica]).steps
