"""AlterMOMA: prune, export and deploy camera-LiDAR fusion detectors."""

__version__ = "0.1.0"
