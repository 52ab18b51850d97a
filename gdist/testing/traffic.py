"""What went over network links, in bytes and packets, from the kernel's counters."""

from __future__ import annotations

from dataclasses import dataclass

HEADER_BYTES = 66  # of a packet: Ethernet 14, IPv4 20, TCP 20 and its timestamps 12


@dataclass(frozen=True, slots=True)
class Flow:
    """What went one way over a link."""

    nbytes: int
    packets: int

    @property
    def payload(self) -> int:
        """Estimate of the bytes that TCP delivered: without `HEADER_BYTES` a packet.

        Packets are counted as the kernel hands them over, up to 64 KiB with one header, so that what they
        would weigh on a wire is not in either number. What is sent again is counted again.
        """
        return max(self.nbytes - self.packets * HEADER_BYTES, 0)

    def __sub__(self, other: Flow) -> Flow:
        return Flow(self.nbytes - other.nbytes, self.packets - other.packets)


@dataclass(frozen=True, slots=True)
class Link:
    """Both ways of a link, as its lower end sees it: a host its own, the cluster its uplink."""

    into: Flow
    out: Flow

    def __sub__(self, other: Link) -> Link:
        return Link(self.into - other.into, self.out - other.out)


@dataclass(frozen=True, slots=True)
class Traffic:
    """What went over every link since the rig was built, or, as a difference, between two looks."""

    wan: Link
    hosts: tuple[Link, ...]

    def __sub__(self, other: Traffic) -> Traffic:
        pairs = zip(self.hosts, other.hosts, strict=True)
        return Traffic(self.wan - other.wan, tuple(mine - theirs for mine, theirs in pairs))


def parse_ports(text: str) -> dict[str, Link]:
    """The links at a switch's ports, by name, from its `/proc/net/dev`: a port sends into its link."""
    links: dict[str, Link] = {}
    for line in text.splitlines()[2:]:
        name, _, counters = line.partition(":")
        numbers = [int(word) for word in counters.split()]
        links[name.strip()] = Link(into=Flow(numbers[8], numbers[9]), out=Flow(numbers[0], numbers[1]))
    return links
