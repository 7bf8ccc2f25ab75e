"""Who may open a repository, and the owner's rules."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING

from pharmabackup.credentials import KeyFile, Passphrase, Recipient, Shares, StrPath, Vault
from pharmabackup.events import Finding, Progress
from pharmabackup.repository.opened import Opened
from pharmabackup.results import Proposal, RecoveryDrill, Rules, ShareCheck, Slot
from pharmabackup.retention import Keep

if TYPE_CHECKING:
    from pharmabackup.format.keys import Role
    from pharmabackup.repository import Repository


class Keys(Opened):
    """Slots, keys and rules (docs/keys.md)."""

    def slots(self) -> list[Slot]:
        """Who is enrolled, and who ever was. Damaged, StorageFailed."""
        from pharmabackup.verbs.keys import slots

        return slots(self._unlocked)

    def enrol(
        self,
        role: Role,
        who: Recipient | KeyFile | Vault | Passphrase,
        *,
        name: str,
        domain: str | None = None,
    ) -> None:
        """Let one more credential open this repository, with the keys of its role alone.

        `domain`: of a device: those of one domain trust each other's chunks. None: the owner's own.
        Conflict("name-taken"), InvalidInput, NotFound, NotPermitted, StorageFailed.
        """
        from pharmabackup.verbs.keys import enrol

        self._journal.run(
            "enrol",
            lambda: enrol(self._unlocked, role, who, name=name, domain=domain),
            subject=name,
            noted=True,
        )

    def revoke(
        self, name: str, *others: str, reason: str, replicas: Sequence[Repository] = ()
    ) -> tuple[Finding, ...]:
        """A slot opens nothing any more, and what it signs does not count; what it has backed up stays.

        New keys are made, since it knows those that are in use. `others`: all that were stolen along with it, in one
        list of keys, since each could stop the others' being revoked.
        `replicas`: where it has backed up to directly, so that this stays too.
        What is found: of whom not all that was there counts, since he had written too much (`revoked-in-part`).
        NotFound, Conflict, InvalidInput, NotPermitted, StorageFailed.
        """
        from pharmabackup.verbs.keys import revoke

        elsewhere = [other._unlocked for other in replicas]
        return self._journal.run(
            "revoke",
            lambda: revoke(self._unlocked, (name, *others), reason=reason, elsewhere=elsewhere),
            subject=", ".join((name, *others)),
            reason=reason,
            noted=True,
        )

    def split_recovery(self, *, threshold: int = 2, shares: int = 3) -> tuple[str, ...]:
        """Shares of a new recovery key, of which `threshold` open as an owner; they replace older ones. Shown once.

        InvalidInput, NotPermitted, Conflict, StorageFailed.
        """
        from pharmabackup.verbs.keys import split_recovery

        return self._journal.run(
            "split-recovery",
            lambda: split_recovery(self._unlocked, threshold=threshold, shares=shares),
            noted=True,
        )

    def drill_recovery_key(
        self, shares: Shares, *, progress: Progress | None = None, cancel: threading.Event | None = None
    ) -> RecoveryDrill:
        """Prove that any k of these shares bring everything back. Whoever opened it; a holder opens with the shares.

        They are of the newest split and belong together; what they open has every key that is in use; of every
        dataset, names and data are opened with it and verified, also from before keys were replaced. Nothing is
        handed out, nothing stays on this machine, and what came of it is recorded.
        Incomplete, InvalidInput, WrongCredential, Damaged, StorageFailed, Cancelled.
        """
        from pharmabackup.verbs.drill import drill_recovery_key

        facts: dict[str, object] = {"kind": "recovery-key"}

        def run() -> RecoveryDrill:
            return drill_recovery_key(
                self._unlocked, shares, facts=facts, shower=self._shower, progress=progress, cancel=cancel
            )

        return self._journal.run("drill", run, facts=facts)

    @staticmethod
    def check_share(url: StrPath, share: str, *, storage_options: Mapping[str, object] | None = None) -> ShareCheck:
        """Whether one share is as it was printed and of the newest recovery key: without another, or any credential.

        InvalidInput when it was mistyped; NotFound when there is no repository, or no recovery key; Damaged,
        StorageFailed. Nothing is recorded: who holds one share cannot sign.
        """
        from pharmabackup.verbs.check_share import check_share

        return check_share(url, share, storage_options=storage_options)

    def change_passphrase(self, new: Passphrase) -> None:
        """From now on this slot opens with `new`. NotPermitted, InvalidInput, Conflict, StorageFailed."""
        from pharmabackup.verbs.keys import change_passphrase

        self._journal.run("change-passphrase", lambda: change_passphrase(self._unlocked, new), noted=True)

    def rotate(self, *, reason: str) -> None:
        """New keys for what is written from now on; old data keeps its own. NotPermitted, Conflict, StorageFailed."""
        from pharmabackup.verbs.keys import rotate

        self._journal.run("rotate", lambda: rotate(self._unlocked, reason=reason), reason=reason, noted=True)

    def configure(
        self,
        *,
        keep: Mapping[str, Keep] | None = None,
        forget_delay: timedelta | None = None,
        forget_quorum: int | None = None,
        reason_required: bool | None = None,
        lock: timedelta | None = None,
    ) -> None:
        """The owner's rules: for `propose_forget()`, how long a forget waits, how many must agree, whether a restore
        needs a reason, and for how long places that can lock what is stored. None: as it is.

        InvalidInput, NotPermitted, Conflict, Damaged, StorageFailed.
        """
        from pharmabackup.verbs.configure import Wish, configure

        wish = Wish(keep, forget_delay, forget_quorum, reason_required, lock)
        self._journal.run("configure", lambda: configure(self._unlocked, wish), noted=True)

    def rules(self) -> Rules:
        """What `configure` has set. Damaged, StorageFailed."""
        from pharmabackup.verbs.configure import rules

        return rules(self._unlocked)

    def propose_reseal(self) -> Proposal:
        """What is sealed for older keys, and would be sealed for the newest. NotPermitted, Unsupported, Damaged."""
        from pharmabackup.verbs.reseal import propose_reseal

        return self._journal.unless_refused("reseal", lambda: propose_reseal(self._unlocked))
