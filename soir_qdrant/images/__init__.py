"""Anything a user hands in, to upright 8-bit RGB: listing.py walks, files.py reads, pixels.py decodes."""

from soir_qdrant.images.addresses import is_address as is_address
from soir_qdrant.images.files import File as File
from soir_qdrant.images.files import RawImage as RawImage
from soir_qdrant.images.files import Source as Source
from soir_qdrant.images.files import exists as exists
from soir_qdrant.images.files import is_folder as is_folder
from soir_qdrant.images.files import read as read
from soir_qdrant.images.files import stamp_of as stamp_of
from soir_qdrant.images.files import uri_of as uri_of
from soir_qdrant.images.formats import SUFFIXES as SUFFIXES
from soir_qdrant.images.listing import Images as Images
from soir_qdrant.images.listing import LeftOut as LeftOut
from soir_qdrant.images.listing import count_sources as count_sources
from soir_qdrant.images.listing import folder_images as folder_images
from soir_qdrant.images.listing import iter_sources as iter_sources
from soir_qdrant.images.loading import decode as decode
from soir_qdrant.images.loading import decoded_bytes as decoded_bytes
from soir_qdrant.images.loading import load as load
from soir_qdrant.images.options import MAX_PIXELS as MAX_PIXELS
from soir_qdrant.images.options import ReadOptions as ReadOptions
from soir_qdrant.images.pixels import GREY as GREY
