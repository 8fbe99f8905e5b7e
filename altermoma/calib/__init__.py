"""INT8: calibration, explicit Q/DQ in the stage graphs, sensitivity."""
