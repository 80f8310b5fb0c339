"""What may not be done with a model, said when it is first used on a machine."""

from __future__ import annotations

from registry.models import ModelSpec
from registry.settings import Settings


def notice(spec: ModelSpec, settings: Settings) -> str:
    """The licence of a model that may not be used commercially, in words; empty if it may, if its weights are
    made up, or if this was said on this machine before."""
    if spec.commercial_use or settings.made_up:
        return ""
    said = settings.cache_dir / "licences" / spec.name
    if said.exists():
        return ""
    try:
        said.parent.mkdir(parents=True, exist_ok=True)
        said.write_text(f"{spec.licence}\n")
    except OSError:
        # Said again next time: rather twice than never.
        pass
    return (
        f"{spec.name} is licensed {spec.licence}: non-commercial use only. Its terms: "
        f"https://huggingface.co/{spec.hub_id} (this is said once)"
    )
