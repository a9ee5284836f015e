"""Nodes that had other ids, or inputs of other names: how the host turns saved workflows into today's.

The host leads away only from ids that no node has any more, and takes over only the inputs that are named here. So a
node that must lose or rename an input gets a new id, and its old id an entry, with every input and output.
"""

from comfy_api.latest import ComfyAPI, io

# io.NodeReplace(new_node_id=, old_node_id=, old_widget_ids=[...], input_mapping=[{"new_id":, "old_id":}, {"new_id":,
# "set_value":}], output_mapping=[{"new_idx":, "old_idx":}]); tests/host/test_replacements.py checks each.
REPLACEMENTS: tuple[io.NodeReplace, ...] = ()


async def register() -> None:
    """Tell the host. All that we support know of replacements, the oldest too."""
    for replacement in REPLACEMENTS:
        await ComfyAPI().node_replacement.register(replacement)
