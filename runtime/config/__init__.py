"""The configuration file: TOML in natural units, read into frozen values, refused with file, line and reason."""

from .file import MAX_BYTES, Config, describe_config, field_help, load_config, parse_config
from .schema import MigrateConfig

__all__ = ["MAX_BYTES", "Config", "MigrateConfig", "describe_config", "field_help", "load_config", "parse_config"]
