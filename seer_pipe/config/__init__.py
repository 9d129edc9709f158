"""A whole run as one typed tree, read from YAML: sections of settings, what follows from them, and their files."""

from seer_pipe.config.derived import Derived as Derived
from seer_pipe.config.derived import derive as derive
from seer_pipe.config.loading import Record as Record
from seer_pipe.config.loading import dump as dump
from seer_pipe.config.loading import flat as flat
from seer_pipe.config.loading import load as load
from seer_pipe.config.loading import parse as parse
from seer_pipe.config.loading import parse_objective as parse_objective
from seer_pipe.config.loading import read_record as read_record
from seer_pipe.config.loading import save as save
from seer_pipe.config.sections import BoardName as BoardName
from seer_pipe.config.sections import Cache as Cache
from seer_pipe.config.sections import Config as Config
from seer_pipe.config.sections import Data as Data
from seer_pipe.config.sections import Health as Health
from seer_pipe.config.sections import ImageGroups as ImageGroups
from seer_pipe.config.sections import Model as Model
from seer_pipe.config.sections import Optimizer as Optimizer
from seer_pipe.config.sections import Probe as Probe
from seer_pipe.config.sections import Source as Source
from seer_pipe.config.sections import Train as Train
from seer_pipe.config.views import Augment as Augment
from seer_pipe.config.views import Crop as Crop
from seer_pipe.config.views import Grid as Grid
from seer_pipe.config.views import Views as Views
