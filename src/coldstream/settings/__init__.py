"""coldstream.toml, the environment and the command line, as frozen dataclasses; read once, by the cli only.

    [server]                      # all optional
    host = "0.0.0.0"
    port = 8080

    [models.gemma]
    uri = "gs://bucket/gemma"

    [tasks.sql]
    model = "gemma"
    prompt = "Schema: {context}\\nQuestion: {question}"
    [tasks.sql.inputs.question]
    help = "What to ask of the database"
    [tasks.sql.sampling]
    temperature = 0.0

`schema` says what there is, `parse` makes it of a table, `file` reads it, `reference` puts it into words.
Standard library only: this is read before anything else is imported.
"""

from coldstream.settings.command_line import check_device as check_device
from coldstream.settings.command_line import check_engine as check_engine
from coldstream.settings.command_line import check_precision as check_precision
from coldstream.settings.command_line import check_weights as check_weights
from coldstream.settings.file import load as load
from coldstream.settings.file import port_from_environment as port_from_environment
from coldstream.settings.schema import DEFAULT_PORT as DEFAULT_PORT
from coldstream.settings.schema import DeploySettings as DeploySettings
from coldstream.settings.schema import Device as Device
from coldstream.settings.schema import EngineName as EngineName
from coldstream.settings.schema import EngineSettings as EngineSettings
from coldstream.settings.schema import ImageSettings as ImageSettings
from coldstream.settings.schema import InputKind as InputKind
from coldstream.settings.schema import InputSettings as InputSettings
from coldstream.settings.schema import LoadSettings as LoadSettings
from coldstream.settings.schema import LogFormat as LogFormat
from coldstream.settings.schema import ModelSettings as ModelSettings
from coldstream.settings.schema import Precision as Precision
from coldstream.settings.schema import RunEngine as RunEngine
from coldstream.settings.schema import SamplingSettings as SamplingSettings
from coldstream.settings.schema import ServerSettings as ServerSettings
from coldstream.settings.schema import Settings as Settings
from coldstream.settings.schema import SmokeSettings as SmokeSettings
from coldstream.settings.schema import TaskSettings as TaskSettings
from coldstream.settings.schema import Verify as Verify
from coldstream.settings.schema import WeightsFrom as WeightsFrom
from coldstream.settings.schema import for_uri as for_uri
from coldstream.settings.template import template_variables as template_variables
