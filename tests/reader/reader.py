"""A second reader of the storage format, written from docs/format.md alone; it shares no code with the library.

It opens a folder with a passphrase, or with the seed of a key file or of shares, refuses what section 22 says, and
gives every snapshot's entries with their content. It is strict: one rejected record stops it, needed or not. It is
for small repositories: it reads packs whole and computes every chunk's name. Not here: the wait of section 23, 3.
"""

from __future__ import annotations

import itertools
import struct
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from tests.reader import wire
from tests.reader.keys import HEX32
from tests.reader.manifest import Entry, Walk, column, extents_of
from tests.reader.records import Records
from tests.reader.wire import Refused, blake3, header, key_id, require, sha256, unframe, unpack, unseal


class Reader(Records):
    def refresh(self) -> None:
        super().refresh()
        self._load_index()
        self._pack = lru_cache(4)(self._read_pack)
        self._block = lru_cache(16)(self._read_block)

    # ------------------------------------------------------------ index, packs, blocks (§10 to §12)

    def _load_index(self) -> None:
        listed = {bytes.fromhex(m[2]) for m in self._list("packs", f"([0-9a-f]{{2}})/{HEX32}") if m[2][:2] == m[1]}
        entries: dict[bytes, set[Any]] = {}
        for match in self._list("index", HEX32):
            data = self._get(match[0])
            require(sha256(data).hex() == match[1], f"{match[0]} is damaged")
            segment, slot, _ = self._open(data, wire.INDEX, "index/")
            for entry in segment.packs:
                directory, *_ = self._signed(entry.directory, wire.DIRECTORY, "packs/")
                if entry.pack in listed and (slot.role != "device" or slot.domain == directory.domain):
                    entries.setdefault(entry.pack, set()).add(entry)
        self.instances: dict[bytes, list[tuple[bytes, bytes, int]]] = {}  # block: (domain, pack, position)
        self.entries = {pack: next(iter(some)) for pack, some in entries.items() if len(some) == 1}
        for pack in sorted(listed):
            if pack in self.entries:
                directory, *_ = self._signed(self.entries[pack].directory, wire.DIRECTORY, "packs/")
                self._check_directory(directory, self.entries[pack].size)
            else:
                directory = self._read_pack(pack)[1]
            for position, block in enumerate(directory.blocks):
                self.instances.setdefault(block.id, []).append((directory.domain, pack, position))

    def _check_directory(self, directory: Any, room: int) -> None:
        require(directory.region_size + directory.names_size <= room, "blocks and names reach into the directory")
        chunks = sum(block.count for block in directory.blocks)
        require(directory.names_size == (80 + 32 * chunks if chunks else 0), "a list of names of a wrong length")
        end = 0
        for block in directory.blocks:
            require(block.key < len(directory.keys), "a block of no key")
            require(end <= block.offset, "blocks overlap or are out of order")
            end = block.offset + block.length
            key = directory.keys[block.key]
            of_catalogue = not key.wraps
            require(of_catalogue == (block.kind == wire.RECIPE), "a block under a key of the wrong sort")
            require(of_catalogue or key.key_id not in self.catalogue, "a block under a key of the wrong sort")
        require(end <= directory.region_size, "a block outside of its pack's region")

    def _read_pack(self, pack: bytes) -> tuple[bytes, Any]:
        data, name = self._get(f"packs/{pack.hex()[:2]}/{pack.hex()}"), f"pack {pack.hex()}"
        require(sha256(data) == pack, f"{name} is damaged")
        require(len(data) >= 8 and data[-4:] == b"PHBP", f"{name} has no trailer")
        start = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
        require(start >= 0 and len(data) - 8 - start <= 2**26, f"{name}: its directory lies outside of it")
        directory, _, signed = self._open(data[start:-8], wire.DIRECTORY, "packs/")
        self._check_directory(directory, start)
        require(sha256(data[: directory.region_size]) == directory.region, f"{name}: another region")
        if entry := self.entries.get(pack):
            same = entry.size == len(data) and wire.Signed(unpack(entry.directory)) == signed
            require(same, f"{name}: the index says something else")
        self._check_names(data[directory.region_size :][: directory.names_size], directory, name)
        return data, directory

    def _check_names(self, section: bytes, directory: Any, name: str) -> None:
        """Nobody signed the names (§10.1): what proves them is the blocks' ids."""
        if not directory.blocks:
            return
        section = header(section, wire.NAMES)
        require(section[:32] in self.catalogue, f"{name}: names under a key that this credential does not have")
        names = unseal(self.catalogue[section[:32]], section[32:], self._associated(wire.NAMES, section[:32]))
        for block in directory.blocks:
            own, names = names[: 32 * block.count], names[32 * block.count :]
            require(self._block_id(block.kind, own) == block.id, f"{name}: a block with other names than its id's")

    def _block_id(self, kind: int, names: bytes) -> bytes:
        return blake3(bytes([kind]) + names, key=self.block_names).digest()

    def _read_block(self, id_: bytes, kind: int, domain: bytes) -> list[bytes]:
        """The chunks of a block: the first instance in the snapshot's domain that verifies (§23)."""
        problem = Refused(f"block {id_.hex()} is missing")
        for its_domain, pack, position in self.instances.get(id_, []):
            if its_domain == domain:
                try:
                    return self._read_instance(id_, kind, domain, pack, position)
                except Refused as error:
                    problem = error
        raise problem

    def _read_instance(self, id_: bytes, kind: int, domain: bytes, pack: bytes, position: int) -> list[bytes]:
        data, directory = self._pack(pack)
        block = directory.blocks[position]
        require((block.id, block.kind) == (id_, kind), "a block of another kind")
        wrapped = directory.keys[block.key]
        key = self._block_key(wrapped)
        sealed = data[block.offset : block.offset + block.length]
        plain = unseal(key, sealed, self._associated(kind, wrapped.key_id, id_))
        content = unframe(plain, wire.MAX_CONTENT, checksum=True)
        n = int.from_bytes(content[-4:], "little")
        require(len(content) >= 4 and 1 <= n <= 65536 and len(content) >= 4 * n + 4, "a block's lengths are cut off")
        require(n == block.count, "a block with another number of chunks than its directory says")
        lengths = column("I", content[-4 - 4 * n : -4], n)
        require(max(lengths) <= 2**22 and sum(lengths) <= 2**23, "a chunk or block is too large")
        require(sum(lengths) == len(content) - 4 * n - 4, "a block's lengths are wrong")
        ends = list(itertools.accumulate(lengths))
        chunks = [content[end - size : end] for end, size in zip(ends, lengths, strict=True)]
        require(domain in self.naming, "this credential has no naming key of the domain")
        naming = wire.derive(wire.NAMES_OF[kind], self.naming[domain])
        names = b"".join(blake3(chunk, key=naming).digest() for chunk in chunks)
        require(self._block_id(kind, names) == id_, "a block with other chunks than its id names")
        return chunks

    def _block_key(self, wrapped: Any) -> bytes:
        if not wrapped.wraps:
            require(wrapped.key_id in self.catalogue, "a recipe block under an unknown key")
            return self.catalogue[wrapped.key_id]
        for wrap in wrapped.wraps:
            if wrap.recipient in self.readers:
                info = self._associated(wire.WRAPPED, wrapped.key_id)
                key = self.readers[wrap.recipient].open(wrap.sealed, info)
                require(len(key) == 32 and key_id(key) == wrapped.key_id, "a wrapped key is another")
                return key
        raise Refused("a block's key is wrapped for somebody else")

    # ------------------------------------------------------------ snapshots and files (§17 to §19)

    def snapshots(self) -> dict[str, Any]:
        """Committed and not gone, oldest first."""
        left = [item for item in self.fates.items() if item[0] not in self.gone]
        return dict(sorted(left, key=lambda item: (item[1].time, item[1].sequence)))

    def _chunks(self, refs: list[Any], kind: int, domain: bytes) -> Iterator[bytes]:
        for ref in refs:
            chunks = self._block(ref.block, kind, domain)
            require(ref.first + ref.count <= len(chunks), "a Ref names chunks that its block does not have")
            yield from chunks[ref.first : ref.first + ref.count]

    def _content(self, snapshot: Any) -> Iterator[bytes]:
        """The content stream, chunk by chunk (§18)."""
        table = b"".join(self._chunks(snapshot.table, wire.RECIPE, snapshot.domain))
        require(len(table) % 32 == 0, "a block table that does not divide by 32")
        total = 0
        for section in self._chunks(snapshot.recipe, wire.RECIPE, snapshot.domain):
            at = 0
            while at < len(section):
                n = int.from_bytes(section[at : at + 4], "little")
                require(1 <= n <= 65536 and at + 4 + 20 * n <= len(section), "a recipe's section is cut off")
                columns = [column("I", section[at + 4 + i * 4 * n : at + 4 + (i + 1) * 4 * n], n) for i in range(3)]
                columns.append(column("Q", section[at + 4 + 12 * n : at + 4 + 20 * n], n))
                at += 4 + 20 * n
                for place, first, count, size in zip(*columns, strict=True):
                    id_ = table[32 * place : 32 * place + 32]
                    require(len(id_) == 32 and id_ != bytes(32), "a run names no place of the table")
                    require(first < 65536 and 1 <= count <= 65536 and size <= 2**23, "a run out of bounds")
                    total += count
                    require(total <= snapshot.chunks, "a recipe with more chunks than the snapshot")
                    chunks = self._block(id_, wire.DATA, snapshot.domain)
                    require(first + count <= len(chunks), "a run names chunks that its block does not have")
                    run = chunks[first : first + count]
                    require(sum(map(len, run)) == size, "a run's bytes are not those of its chunks")
                    yield from run
        require(total == snapshot.chunks, "a recipe with fewer chunks than the snapshot")

    def _frames(self, snapshot: Any) -> Iterator[tuple[int, int, int, Any]]:
        buffer = b""
        for chunk in self._chunks(snapshot.manifest, wire.MANIFEST, snapshot.domain):
            buffer += chunk
            while len(buffer) >= 4 and len(buffer) >= 4 + (n := int.from_bytes(buffer[:4], "little")):
                require(17 <= n <= 2**26, "a manifest's frame of an impossible length")
                type_, content, chunks = struct.unpack("<BQQ", buffer[4:21])
                require(type_ in (1, 2) and max(content, chunks) <= 2**62, "a manifest's frame of an unknown type")
                require(type_ == 1 or content == chunks == 0, "a finding with content")
                yield type_, content, chunks, unpack(buffer[21 : 4 + n])
                buffer = buffer[4 + n :]
        require(not buffer, "a manifest's frame is cut off")

    def entries_of(self, transaction: str, findings: list[Any] | None = None) -> Iterator[Entry]:
        """Every entry of a snapshot in the manifest's order, with its content."""
        snapshot = self.snapshots()[transaction]
        stream, rest = self._content(snapshot), b""
        walk, sums = Walk(), Counter()
        for type_, content, chunks, fields in self._frames(snapshot):
            if type_ == 2:
                found = wire.Finding(fields)
                findings.append(found) if findings is not None else None
                continue
            entries, of_chunks = walk.folder(wire.Folder(fields))
            extents = [extents_of(entry) for entry in entries]
            require(sum(size for some in extents for _, size in some) == content, "a folder's sum of bytes is wrong")
            require(sum(of_chunks) == chunks, "a folder's sum of chunks is wrong")
            sums.update(chunks=chunks, files=sum(entry.kind == wire.FILE for entry in entries))
            sums.update(size=sum(entry.size for entry in entries))
            for entry, some in zip(entries, extents, strict=True):
                for offset, size in some:
                    parts, have = [rest], len(rest)
                    while have < size:
                        parts.append(next(stream, b""))
                        require(parts[-1], "the recipe has less than the manifest")
                        have += len(parts[-1])
                    joined = b"".join(parts)
                    rest = joined[size:]
                    entry.pieces.append((offset, joined[:size]))
                yield entry
        require(not rest and next(stream, None) is None, "the recipe has more than the manifest")
        said = {"chunks": snapshot.chunks, "files": snapshot.files, "size": snapshot.size}
        require(
            all(sums[name] == value for name, value in said.items()), "a snapshot with other sums than its manifest"
        )
        walk.end()

    def restore(self, transaction: str) -> dict[bytes, Entry]:
        """A snapshot as a dictionary of paths; further names have the content of the file that they name."""
        found = {entry.path: entry for entry in self.entries_of(transaction)}
        for entry in found.values():
            if entry.same_file is not None:
                first = found.get(entry.same_file)
                require(first and first.kind == wire.FILE and first.same_file is None, "a further name of no file")
                entry.pieces, entry.extents, entry.attributes = first.pieces, first.extents, first.attributes
        return found
