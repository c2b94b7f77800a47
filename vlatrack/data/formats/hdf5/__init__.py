"""HDF5 files with demonstrations, LIBERO's and robomimic's: reading what nobody vouches for."""
