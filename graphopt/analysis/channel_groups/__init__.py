"""Which channels, attention heads and neurons can be removed, and what must change with them."""

from graphopt.analysis.channel_groups.analysis import ChannelGroups, Group
from graphopt.analysis.channel_groups.sites import Count, Cut, EvenSplit, Layer, Lookup, Role

__all__ = ["ChannelGroups", "Count", "Cut", "EvenSplit", "Group", "Layer", "Lookup", "Role"]
