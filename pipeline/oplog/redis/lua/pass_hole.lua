#!lua
-- Let a producer go on behind sequences that this log has lost; whoever calls has seen to it that they are accounted for.
--
-- KEYS  1 producer  hash  bucket -> "<last producer seq> <epoch> <seq>", as in `enqueue.lua`
-- ARGV  1 bucket  2 last sequence that the caller was told of (0: none)  3 last sequence to count as seen  4 TTL, ms
-- Returns 1 if passed, 0 if the log knows something else by now: append again, and look at its answer.
local seen = redis.call('HGET', KEYS[1], ARGV[1])
local last = seen and string.match(seen, '%d+') or '0'
if last ~= ARGV[2] then return 0 end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[3] .. ' 0 0')
redis.call('PEXPIRE', KEYS[1], ARGV[4])
return 1
