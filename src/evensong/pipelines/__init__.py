"""One plain function a step of the night: values and URIs in, a URI or a small result out."""
