"""The suite that holds every array library and every backend to the numerics contract.

Run it with ``pytest --pyargs ln_array_api_conformance --library NAME --backend NAME``. It imports
nothing of ``ln_array_api`` but its public names, so it tests what a user calls.

==================== ======================================================================
``libraries.py``      how to make and read arrays of each library, and what it promises
``operations.py``     what is tested, as data: a new operation joins by a new description
``reference.py``      what is right: float64 or mpmath, gradients by complex step
``inputs.py``         the values and the shapes that it is tested on
``tolerances.py``     how right is right enough, and why, for every rule in one place
``expected_failures`` a text file for each library, with a reason for each line
==================== ======================================================================
"""
