"""Import the library before pytest collects one of its modules.

pytest would set a module that it imports first as an attribute of the package, in place of the
function of the same name, and examples would call the module.
"""

import ln_array_api  # noqa: F401
