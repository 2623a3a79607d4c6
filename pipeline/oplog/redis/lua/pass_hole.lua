#!lua
-- Let a producer go on behind sequence numbers that this log has lost; the caller has accounted for them.
--
-- KEYS  1 producer  hash  bucket -> "<last producer seq> <epoch> <seq>", as in `enqueue.lua`
-- ARGV  1 bucket  2 last seq that the caller knows of (0: none)  3 last seq to count as seen  4 ms until the producer expires
-- Returns 1 if passed, 0 if the log knows another last seq by now: the caller appends again, and gets a new answer.
local seen = redis.call('HGET', KEYS[1], ARGV[1])
local last = seen and string.match(seen, '^(%d+) %d+ %d+$') or '0'
if last ~= ARGV[2] then return 0 end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[3] .. ' 0 0')
redis.call('PEXPIRE', KEYS[1], ARGV[4])
return 1
