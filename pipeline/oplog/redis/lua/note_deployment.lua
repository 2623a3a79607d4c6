#!lua flags=allow-oom
-- Note the fingerprint of the deployment if it is still as the caller saw it.
--
-- KEYS  1 deployment   string  the fingerprint as JSON
-- ARGV  1 the text seen ('' for none)  2 the new text
-- Returns 1 if noted, 0 if the caller must read it again.
if (redis.call('MGET', KEYS[1])[1] or '') ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[2])
return 1
