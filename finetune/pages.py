"""Renders the packaged HTML templates. Everything that reaches a page is escaped."""

from jinja2 import Environment, PackageLoader, StrictUndefined


def render(template: str, **values: object) -> str:
    """Fills `finetune/templates/<template>`; an unknown name in a template is an error."""
    environment = Environment(
        loader=PackageLoader("finetune"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["figure"] = lambda value, digits=1: "–" if value is None else f"{value:.{digits}f}"
    environment.filters["widest"] = lambda interval: max(map(abs, interval))
    return environment.get_template(template).render(**values)
